"""Metrics: what a worker counts, and how the counts of all workers become one page for Prometheus.

Each worker counts in its own memory and hands its page on when asked; a label says which worker. (prometheus-client's
own way for several processes maps files, and a full disk under a mapped file kills the process.)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from millrace.collector.intake import Outcome

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Reading(Collector):
    """Gauges and counters that somebody else keeps, read when they are asked for."""

    def __init__(self, read: Callable[[], Mapping[str, tuple[str, float]]]) -> None:
        """Take the function that reads: by name, help text and value; a name that ends in `_total` is a counter."""
        self._read = read

    def collect(self) -> Iterable[Metric]:
        for name, (text, value) in self._read().items():
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            yield family(name, text, value=value)


class Metrics:
    """One worker's."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter("requests", "Requests answered.", "route", "code")
        self._by_route: dict[tuple[str, int], Counter] = {}
        self._events = self._counter("events", "Events that were answered with 200.", "source")
        self._rejected = self._counter("rejected_events", "Events that were refused one by one.", "reason")
        self._bytes = self._counter("body_bytes", "Bodies of events, as they came.")
        self._unpacked = self._counter("unpacked_bytes", "The same bodies, unpacked.")
        self._oversized = self._counter("oversized_events", "Events over the soft limit; they were taken.")
        self._limited = self._counter("rate_limited", "Requests that got a 429.", "source")
        self._not_durable = self._counter("not_durable", "Requests that got a 503 for want of a safe place.", "reason")
        self._refused = self._counter("http_refused", "Requests that no application saw, by what was wrong.", "reason")
        self.failures = self._counter("failures", "Bugs: exceptions that nobody foresaw, answered with 503. Alert.")
        self.reloads = self._counter("reloads", "Times that the sources were read again.", "outcome")
        self.answered_s = self._histogram("answer_seconds", "From a request's end to its answer.")
        self.published_s = self._histogram("publish_seconds", "Requests to Pub/Sub that were acknowledged.")

    def read(self, read: Callable[[], Mapping[str, tuple[str, float]]]) -> None:
        """Show what somebody else keeps."""
        self.registry.register(Reading(read))

    def count_request(self, route: str, code: int) -> None:
        """Count an answer."""
        counter = self._by_route.get((route, code))
        if counter is None:  # `labels` takes a lock and makes text of its arguments, each time
            counter = self._by_route[route, code] = self._requests.labels(route, code)
        counter.inc()

    def count_outcome(self, outcome: Outcome, wire_bytes: int) -> None:
        """Count what a request brought, once it was answered with what it asked for."""
        if outcome.source is not None:
            refused = sum(outcome.rejected.values())
            if outcome.events > refused:
                self._events.labels(outcome.source.id).inc(outcome.events - refused)
        for reason, events in outcome.rejected.items():
            self._rejected.labels(reason).inc(events)
        if outcome.oversized:
            self._oversized.inc(outcome.oversized)
        self._bytes.inc(wire_bytes)
        self._unpacked.inc(outcome.body_bytes)

    def count_limited(self, source_id: str) -> None:
        """Count a 429."""
        self._limited.labels(source_id).inc()

    def count_not_durable(self, reason: str) -> None:
        """Count a 503."""
        self._not_durable.labels(reason).inc()

    def count_refused(self, reason: str) -> None:
        """Count a request that the server ended."""
        self._refused.labels(reason).inc()

    def page(self) -> str:
        """Return all of it, as Prometheus reads it."""
        return generate_latest(self.registry).decode()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"millrace_collector_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"millrace_collector_{name}", text, registry=self.registry, buckets=_SECONDS)


class _Merged(Collector):
    def __init__(self, pages: Mapping[str, str], own: Iterable[Metric]) -> None:
        self._pages = pages
        self._own = own

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for worker, page in self._pages.items():
            for family in text_string_to_metric_families(page):
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for each in family.samples:
                    if not each.name.endswith("_created"):
                        merged.samples.append(each._replace(labels={**each.labels, "worker": worker}))
        yield from families.values()
        yield from self._own


def merged(pages: Mapping[str, str], own: Iterable[Metric] = ()) -> bytes:
    """Return the pages of several workers as one, each sample with the label `worker`; and some of the caller's own."""
    registry = CollectorRegistry()
    registry.register(_Merged(pages, own))
    return generate_latest(registry)

"""Metrics of the lanes for Prometheus, and a health page: `millrace deliver --port`."""

import http.server
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from millrace.delivery.clock import now_us
from millrace.delivery.status import NoLaneError, look

_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "millrace_sink"
_ALWAYS = ("routed", "delivered", "dead", "skipped", "without order", "unreadable")
"""Told from the start, as 0: Prometheus sees no increase in what was not there before."""


class Lanes(Collector):
    """Reads the ledgers whenever it is asked."""

    def __init__(self, state: Path) -> None:
        self._state = state

    def collect(self) -> Iterable[Metric]:
        """Return the metrics, labelled by lane."""
        events = CounterMetricFamily(f"{_PREFIX}_events", "Events by what became of them.", labels=["lane", "outcome"])
        gauges = {
            name: GaugeMetricFamily(f"{_PREFIX}_{name}", text, labels=["lane"])
            for name, text in (
                (
                    "up",
                    "1 where the lane delivers, or was told to end; else 0: its sink is down, it failed, it is silent.",
                ),
                ("waiting", "Events in the lane's hands that are not settled."),
                ("retrying", "Events that failed and will be tried again."),
                ("parked", "Events that an operator put aside."),
                ("blocked_users", "Users whose next event failed."),
                ("behind_rows", "Rows of the archive that the lane has yet to read."),
                ("lag_seconds", "How long the oldest unsettled event has been in the queue."),
                ("deliveries", "Deliveries under way."),
                ("concurrency", "Deliveries that may be under way at once, now."),
            )
        }
        now = now_us()
        try:
            views = look(self._state)
        except NoLaneError:
            views = []
        for view in views:
            status = view.status
            gauges["up"].add_metric([view.name], float(view.is_well(now)))
            if status is None:
                continue
            for name, count in (dict.fromkeys(_ALWAYS, 0) | status.totals).items():
                if name != "parked":  # of which some come back: a gauge
                    events.add_metric([view.name, name.replace(" ", "_")], count)
            values = {
                "waiting": status.waiting,
                "retrying": len(view.trying),
                "parked": len(view.parked),
                "blocked_users": status.blocked_users,
                "behind_rows": status.behind,
                "lag_seconds": view.lag_s(now),
                "deliveries": status.in_flight,
                "concurrency": status.concurrency,
            }
            for name, value in values.items():
                gauges[name].add_metric([view.name], value)
        yield events
        yield from gauges.values()


def serve(state: Path, port: int, host: str, lanes: Sequence[str]) -> http.server.ThreadingHTTPServer:
    """Serve /metrics and /health in a thread of its own; `shutdown` ends it.

    /metrics is of all ledgers in `state`. /health is 200 while every one of `lanes` delivers, else 503 and says which
    does not: a ledger that is left of another sink says nothing of these.

    Raises:
        OSError: the port is taken.
    """
    registry = CollectorRegistry()
    registry.register(Lanes(state))

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, generate_latest(registry), _TYPE)
            elif path == "/health":
                bad = _not_well(state, lanes)
                self._answer(503 if bad else 200, (bad or "ok").encode() + b"\n", "text/plain; charset=utf-8")
            else:
                self._answer(404, b"There are /metrics and /health.\n", "text/plain; charset=utf-8")

        def _answer(self, code: int, body: bytes, kind: str) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing: it is asked every few seconds."""

    server = http.server.ThreadingHTTPServer((host, port), Page)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True, name="metrics").start()
    return server


def _not_well(state: Path, lanes: Sequence[str]) -> str:
    try:
        views = {view.name: view for view in look(state)}
    except NoLaneError:
        views = {}
    now = now_us()
    states = {name: views[name].state(now) if name in views else "never ran" for name in lanes}
    return "\n".join(
        name + (" " if state == "never ran" else " is ") + state
        for name, state in states.items()
        if name not in views or not views[name].is_well(now)
    )

"""What `millrace.yaml` says of delivery, read: sinks, routes, and the lanes that follow from them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec
import xxhash

from millrace.delivery.retry import RetryPolicy
from millrace.transforms.route import Route


@dataclasses.dataclass(frozen=True)
class SinkSettings:
    """A sink as it is configured.

    Attributes:
        name: of the sink.
        use: a built-in sink's name, or module:Name of a class derived from sinks.sink.Sink.
        given: its `with`: the arguments of the class.
        retry: when an event is tried again.
        max_events, max_in_flight: None: as the sink's class says.
        deadline_s: after so long a delivery is cancelled, and counts as timed out.
        hot_user_events: beyond so many events of a user in one release window the rest goes without order.
        max_waiting: events that the lane holds in memory; beyond it the lane stops reading its queue.
    """

    name: str
    use: str
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    retry: RetryPolicy = dataclasses.field(default_factory=RetryPolicy)
    max_events: int | None = None
    max_in_flight: int | None = None
    deadline_s: float = 30.0
    hot_user_events: int = 1_000
    max_waiting: int = 50_000


@dataclasses.dataclass(frozen=True)
class LaneSettings:
    """A sink with its routes of one kind of order: what one process does."""

    sink: SinkSettings
    routes: tuple[Route, ...]
    is_ordered: bool

    @property
    def name(self) -> str:
        """The name of the lane: its ledger's file."""
        return self.sink.name if self.is_ordered else f"{self.sink.name}.unordered"

    @property
    def digest(self) -> str:
        """What tells these routes from others, as far as they say which events they take."""
        said = [(r.name, r.to, str(r.when or ""), r.sample, r.sample_by, r.consent, r.strategy) for r in self.routes]
        return xxhash.xxh3_64_hexdigest(msgspec.json.encode(said))


@dataclasses.dataclass(frozen=True)
class Fanout:
    """All sinks and routes of a configuration."""

    sinks: tuple[SinkSettings, ...] = ()
    routes: tuple[Route, ...] = ()

    @property
    def lanes(self) -> tuple[LaneSettings, ...]:
        """The lanes, in the order of the sinks; a sink without a route has none."""
        found = []
        for sink in self.sinks:
            for is_ordered in (True, False):
                routes = tuple(r for r in self.routes if r.to == sink.name and r.is_ordered == is_ordered)
                if routes:
                    found.append(LaneSettings(sink, routes, is_ordered))
        return tuple(found)

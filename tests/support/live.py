"""For tests of lanes without order: a lane's feed in the hand of the test, over a real Pub/Sub."""

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from millrace.config.job import read_job
from millrace.delivery.ledger import Ledger, Mark, Trying
from millrace.delivery.live import BOUNDS, MEMORY, LiveFeed, Memory
from millrace.delivery.pending import Pending
from millrace.delivery.puller import Bounds
from millrace.delivery.settings import LaneSettings, SinkSettings
from millrace.sinks.sink import DELIVERED, Delivery, Outcome, Sink
from millrace.transforms.route import Route
from tests.support.pubsub import PubSub, wait_until

ALL = (Route("crm", "crm", is_ordered=False),)


def body(*message_ids: str, **more: Any) -> bytes:
    """Return a message of some events."""
    events = [
        {"type": "track", "event": "Bought", "messageId": each, "userId": f"user-{each}",
         "originalTimestamp": "2026-11-25T12:00:00Z", **more}
        for each in message_ids
    ]  # fmt: skip
    return json.dumps(events).encode()


@dataclasses.dataclass(frozen=True)
class Recorded(Sink):
    """A sink that writes each event it takes to a file, at once: one JSON line.

    Args:
        file: where to.
        seconds: how long it takes.
    """

    file: str
    seconds: float = 0.0

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        """Write all, in one piece."""
        await asyncio.sleep(self.seconds)
        with Path(self.file).open("ab") as file:
            file.write(b"".join(line + b"\n" for line in delivery.json()))
        return [DELIVERED] * len(delivery)


def recorded(file: Path) -> list[dict[str, Any]]:
    """What a Recorded sink took: whole lines."""
    text = file.read_bytes() if file.exists() else b""
    return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]


class HandLane:
    """A feed, and what a lane does with it, step by step."""

    def __init__(self, feed: LiveFeed, ledger: Ledger) -> None:
        self.feed = feed
        self.ledger = ledger
        self._trying: set[int] = set()

    def read(self, count: int, timeout_s: float = 60.0) -> list[Pending]:
        """Read until there are at least so many events."""
        events: list[Pending] = []

        def enough() -> bool:
            events.extend(self.feed.read())
            return len(events) >= count

        wait_until(enough, timeout_s, f"{count} events; there are {[each.message_id for each in events]}")
        return events

    def read_until(self, totals: dict[str, int]) -> list[Pending]:
        """Read until the ledger's totals are these; settles nothing by itself."""
        events: list[Pending] = []

        def there() -> bool:
            events.extend(self.feed.read())
            self.save()
            return self.ledger.totals() == totals

        wait_until(there, 90, f"totals {totals}, not {self.ledger.totals()}")
        return events

    def settle(self, events: Sequence[Pending], mark: Mark = Mark.DELIVERED) -> None:
        """Settle events, durably."""
        self.feed.settle(events, mark)
        self.save()

    def save(self, *trying: Trying) -> None:
        """Save, as a lane does all the time; nothing else is tried any more."""
        over = self._trying - {each.position for each in trying}
        self._trying = {each.position for each in trying}
        self.feed.save(trying, sorted(over), time.time_ns() // 1_000)


@contextlib.contextmanager
def hand_lane(
    pubsub: PubSub,
    topic: str,
    ledger: Path,
    config: str = "",
    routes: tuple[Route, ...] = ALL,
    *,
    bounds: Bounds = BOUNDS,
    memory: Memory = MEMORY,
) -> Iterator[HandLane]:
    """Open a lane's feed; at the end what is not settled is given back to Pub/Sub. Its subscription: `own`."""
    opened = Ledger(ledger)
    lane = LaneSettings(SinkSettings("crm", "console"), routes, is_ordered=False)
    subscription = pubsub.subscription_name("own")
    feed = LiveFeed(lane, read_job(config, "F"), opened, subscription, topic, bounds=bounds, memory=memory)
    try:
        assert feed.open() == ([], [])
        yield HandLane(feed, opened)
    finally:
        feed.close()
        opened.close()


def ids(events: Sequence[Pending]) -> list[str]:
    """The events' ids, sorted."""
    return sorted(event.message_id for event in events)

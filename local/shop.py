"""Shop: believable sample traffic, request body by request body, as SDKs send it and a collector publishes it.

Shoppers of very different activity use several devices each. Events leave in bodies of every accepted shape. Clocks
of devices are wrong, requests overtake one another, devices go offline and deliver later, SDKs send again what was not
answered, and a few records are broken. `Expected` adds up what a pipeline has to make of it.
"""

import dataclasses
import gzip
import heapq
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from millrace.local.broken import broken_body, broken_record
from millrace.local.journeys import happenings
from millrace.local.shoppers import Device, Shape, Shopper, iso, make_shopper, make_uuid
from millrace.local.wire import path_of, write_body, write_event
from millrace.schemas import envelope
from millrace.schemas.dead_letter import Reason

_encode = msgspec.json.Encoder().encode
_LONGEST_VISIT_MS = 5_000  # what one request of a connected device looks back on


@dataclasses.dataclass(frozen=True)
class Habits:
    """How often things go wrong; shares of all records, unless said. Turn one off with 0."""

    duplicates: float = 0.015
    """Records sent again: after a lost answer, in a request of their own, or copied inside one body."""
    broken: float = 0.003
    late: float = 0.02
    """Records that reach the collector more than 10 s after they occurred: the device was offline. Fewer in a shop of
    some dozen users, which never has more than a quarter of them away."""
    delayed: float = 0.05
    """Records of devices that were offline for 2 to 8 s."""
    slow: float = 0.04
    """Share of requests that others of the same device overtake, by up to 3 s."""
    shuffled: float = 0.15
    """Share of bodies with several events that have them out of order."""


class Sent(NamedTuple):
    """One request body, as a collector publishes it."""

    body: bytes
    attributes: dict[str, str]
    events: int
    """Records it counts as: its events, broken ones included; a body broken as a whole is one record."""
    broken: int = 0
    message_ids: tuple[str, ...] = ()
    """Of the readable records, in body order, copies included."""
    reasons: tuple[Reason, ...] = ()
    """Of the broken records."""
    payloads: tuple[bytes, ...] = ()
    """The bytes of the broken records, as they will be found in the dead letters."""
    path: str = "/v1/batch"
    """Where its SDK posts it to."""


@dataclasses.dataclass
class Expected:
    """What a pipeline has to make of the bodies added: records = distinct ids + copies + broken."""

    message_ids: set[str] = dataclasses.field(default_factory=set)
    copies: int = 0
    reasons: Counter[Reason] = dataclasses.field(default_factory=Counter)

    def add(self, sent: Sent) -> None:
        """Count one body in."""
        before = len(self.message_ids)
        self.message_ids.update(sent.message_ids)
        self.copies += len(sent.message_ids) - (len(self.message_ids) - before)
        self.reasons.update(sent.reasons)

    @property
    def broken(self) -> int:
        """Records that have to become dead letters."""
        return self.reasons.total()

    @property
    def records(self) -> int:
        """All records, whatever becomes of them."""
        return len(self.message_ids) + self.copies + self.broken


@dataclasses.dataclass(slots=True)
class _Parcel:
    """Events of one device that wait for their request."""

    device: Device
    events: list[dict[str, Any]]  # without sentAt, which the SDK sets as it sends
    latest_ms: int  # true time of its latest event
    again: bool = False


class Shop(Iterator[Sent]):
    """Endless traffic; the same for the same seed, number of users, habits and clock readings.

    Not for several threads at once. The clock is read once a body.
    """

    def __init__(
        self, seed: int = 0, users: int = 2_000, clock: Callable[[], float] = time.time, habits: Habits | None = None
    ) -> None:
        """Open the shop.

        Args:
            seed: decides everything but the times.
            users: number of shoppers; activity falls with rank, as Zipf's law has it.
            clock: the true time, seconds since the epoch.
            habits: what goes wrong how often.

        Raises:
            ValueError: no users.
        """
        if users <= 0:
            raise ValueError(f"users must be positive, got {users}")
        self._seed = seed
        self._clock = clock
        self._habits = habits or Habits()
        self._rng = random.Random(seed)  # noqa: S311  sample data
        self._shoppers: list[Shopper | None] = [None] * users
        self._weights = list(itertools.accumulate((rank + 10) ** -0.9 for rank in range(users)))
        self._outbox: list[tuple[int, int, _Parcel]] = []  # (due in ms, tie-breaker, parcel)
        self._parcels = itertools.count()
        self._ready: list[Sent] = []  # last one first

    def __next__(self) -> Sent:
        """Return the next request body that reaches the collector now."""
        now_ms = int(self._clock() * 1_000)
        while not self._ready:
            if self._outbox and self._outbox[0][0] <= now_ms:
                self._deliver(heapq.heappop(self._outbox)[2], now_ms)
            else:
                self._visit(now_ms)
        return self._ready.pop()

    def _visit(self, now_ms: int) -> None:
        """Let one device live on: it sends now, or later."""
        rng, habits, device = self._rng, self._habits, self._pick(now_ms)
        luck = rng.random()
        # Some 6 events a stretch offline, most of them that old, against some 3 a visit.
        long, short = habits.late * 0.8, habits.delayed * 0.6
        if luck < long and self._offline(device, now_ms, rng.randint(12_000, 90_000)):
            return
        if long <= luck < long + short and self._offline(device, now_ms, rng.randint(2_500, 8_000)):
            return
        end_ms = now_ms - device.latency_ms - rng.randint(0, 30)
        start_ms = max(device.last_ms, end_ms - _LONGEST_VISIT_MS)
        parcel = self._live(device, _events_a_request(device, rng), start_ms, end_ms, slowest=1.0)
        if rng.random() < habits.slow:
            self._post(parcel, now_ms + rng.randint(200, 3_000))
        else:
            self._deliver(parcel, now_ms)

    def _pick(self, now_ms: int) -> Device:
        for attempt in itertools.count():
            rank = self._rng.choices(range(len(self._weights)), cum_weights=self._weights)[0]
            shopper = self._shoppers[rank]
            if shopper is None:
                absurd = rank >= len(self._weights) // 20
                shopper = self._shoppers[rank] = make_shopper(self._seed, rank, absurd_clocks=absurd)
                for device in shopper.devices:
                    device.happenings = happenings(device, shopper.rng)
            device = self._rng.choice(shopper.devices)
            # A small shop under a high rate has to take a device whose latest event is only just over.
            if device.away_until_ms <= now_ms and (device.last_ms < now_ms - device.latency_ms or attempt >= 8):
                return device
        raise AssertionError("endless")

    def _offline(self, device: Device, now_ms: int, for_ms: int) -> bool:
        """Make a stretch without network: one that ends now where the device was idle, else one that begins now."""
        count = self._rng.randint(2, 10)
        if device.last_ms < now_ms - for_ms:
            end_ms = now_ms - device.latency_ms - 50
            self._deliver(self._live(device, count, end_ms - for_ms, end_ms), now_ms)
            return True
        away = sum(1 for _, _, parcel in self._outbox if parcel.device.away_until_ms > now_ms)
        if away >= len(self._weights) // 4:
            return False  # or a small shop would have nobody left
        device.away_until_ms = now_ms + for_ms
        end_ms = device.away_until_ms - device.latency_ms - 50
        self._post(self._live(device, count, max(device.last_ms, now_ms), end_ms), device.away_until_ms)
        return True

    def _live(self, device: Device, count: int, start_ms: int, end_ms: int, slowest: float = 60.0) -> _Parcel:
        """Make the device's next events: spread over the time given as their pauses are, stretched `slowest` times.

        They are at least 1 ms apart, so that a device's events have one order.
        """
        steps = list(itertools.islice(device.happenings, count))
        pause_s = sum(step.think_s for step in steps)
        scale = min(1_000 * slowest, max(0, end_ms - start_ms) / pause_s)
        at_ms = float(end_ms - pause_s * scale)
        events = []
        for step in steps:
            at_ms += step.think_s * scale
            device.last_ms = max(device.last_ms + 1, int(at_ms))
            events.append(write_event(device, step, make_uuid(self._rng), device.last_ms))
        return _Parcel(device, events, device.last_ms)

    def _post(self, parcel: _Parcel, due_ms: int) -> None:
        heapq.heappush(self._outbox, (due_ms, next(self._parcels), parcel))

    def _deliver(self, parcel: _Parcel, now_ms: int) -> None:
        """Send a parcel: in one request, or event by event where the SDK does so."""
        device, events = parcel.device, parcel.events
        sent_ms = max(now_ms - device.latency_ms - self._rng.randint(0, 20), parcel.latest_ms)
        if device.stamps_sent_at:
            events = [{**event, "sentAt": device.stamp(sent_ms)} for event in events]
        bodies = [[event] for event in events] if device.shape is Shape.SINGLE else [events]
        sents = [sent for body in bodies for sent in self._send(device, body, now_ms, again=parcel.again)]
        self._ready = sents[::-1]

    def _send(self, device: Device, events: list[dict[str, Any]], now_ms: int, *, again: bool) -> Iterator[Sent]:
        rng, habits = self._rng, self._habits
        if not again and rng.random() < habits.duplicates * 0.8:  # the answer got lost
            unsent = [{key: value for key, value in event.items() if key != "sentAt"} for event in events]
            self._post(_Parcel(device, unsent, latest_ms=0, again=True), now_ms + rng.randint(100, 4_000))
        if len(events) > 1 and rng.random() < habits.shuffled:
            events = rng.sample(events, len(events))
        if len(events) > 1 and not again and rng.random() < habits.duplicates * 0.5 * len(events):
            events.insert(rng.randrange(len(events) + 1), rng.choice(events))
        parts = [_encode(event) for event in events]
        ids = tuple(event["messageId"] for event in events)
        broken: list[tuple[bytes, Reason]] = []
        attributes = self._attributes(device, now_ms)
        if not again and rng.random() < habits.broken * len(events):
            if len(events) > 1 and rng.random() < 0.6:
                broken.append(broken_record(rng, events[0]))
                parts.insert(rng.randrange(len(parts) + 1), broken[0][0])
            else:
                event = write_event(device, next(device.happenings), make_uuid(rng), now_ms)
                yield self._broken(event, attributes, path_of(device, Shape.SINGLE, event["type"]))
        body = write_body(device.shape, parts, events[0].get("sentAt"))
        if device.gzipped:
            body = gzip.compress(body, 1, mtime=0)
            attributes[envelope.CONTENT_ENCODING] = "gzip"
        payloads, reasons = tuple(part for part, _ in broken), tuple(reason for _, reason in broken)
        path = path_of(device, device.shape, events[0]["type"])
        yield Sent(body, attributes, len(parts), len(broken), ids, reasons, payloads, path)

    def _broken(self, event: dict[str, Any], attributes: dict[str, str], path: str) -> Sent:
        if self._rng.random() < 0.4:
            body, reason = broken_record(self._rng, event)
            return Sent(body, dict(attributes), 1, 1, (), (reason,), (body,), path)
        body, claimed, reason = broken_body(self._rng, event)
        return Sent(body, {**attributes, **claimed}, 1, 1, (), (reason,), (body,), path)

    def _attributes(self, device: Device, now_ms: int) -> dict[str, str]:
        return {
            envelope.SOURCE_ID: device.source_id,
            envelope.RECEIVED_AT: iso(now_ms),
            envelope.IP: device.ip,
            envelope.USER_AGENT: device.user_agent,
            envelope.SCHEMA_VERSION: "1",
        }


def _events_a_request(device: Device, rng: random.Random) -> int:
    if device.shape is Shape.SINGLE:
        return 1
    mean = {"web": 3.0, "tills": 12.0}.get(device.source_id, 4.0)
    return min(60, 1 + int(rng.expovariate(1 / mean)))

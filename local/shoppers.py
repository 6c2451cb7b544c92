"""Shoppers and their devices: who they are, what their SDKs report, and how wrong their clocks are."""

import dataclasses
import enum
import random
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from millrace.local import catalogue

_MINUTE_MS = 60_000
_HOUR_MS = 60 * _MINUTE_MS
_YEAR_MS = 365 * 24 * _HOUR_MS


class Happening(NamedTuple):
    """One call of the SDK, before the device adds ids, clock and context."""

    type: str
    event: str | None = None
    properties: dict[str, Any] | None = None
    traits: dict[str, Any] | None = None
    page: dict[str, str] | None = None
    """context.page, on the web."""
    campaign: catalogue.Campaign | None = None
    group_id: str | None = None
    previous_id: str | None = None
    think_s: float = 2.0
    """Typical pause before it, in seconds."""


class Shape(enum.Enum):
    """How an SDK packs events into a request body."""

    SINGLE = "single"  # one event
    BATCH = "batch"  # {"batch": [...]}, as in Segment's HTTP API
    ARRAY = "array"  # [...]
    LINES = "lines"  # NDJSON


@dataclasses.dataclass(slots=True)
class Shopper:
    """A person, known by `user_id` once logged in."""

    user_id: str
    name: str
    email: str
    place: catalogue.Place
    plan: str
    rng: random.Random
    devices: list["Device"] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class Device:
    """A browser, an app or a till: one anonymous id, one clock, one SDK."""

    shopper: Shopper
    anonymous_id: str
    mobile: bool
    source_id: str
    shape: Shape
    gzipped: bool
    original_key: str
    """Where its SDK writes when it happened: `originalTimestamp` (RudderStack) or `timestamp` (Segment)."""
    context: dict[str, Any]
    ip: str
    user_agent: str
    clock_offset_ms: int
    """What its clock shows minus the true time."""
    stamps_sent_at: bool
    latency_ms: int
    user_id: str | None = None
    last_ms: int = 0
    """True time of its latest event, ms since the epoch."""
    away_until_ms: int = 0
    """Offline, with events of its own on board, until this true time."""
    happenings: Iterator[Happening] = dataclasses.field(default_factory=lambda: iter(()))

    def stamp(self, true_ms: int) -> str:
        """Write a true time as this device's clock shows it, RFC 3339 in ms."""
        return iso(true_ms + self.clock_offset_ms)


def iso(ms: int) -> str:
    """Write ms since the epoch the way SDKs do.

    >>> iso(1_764_000_000_123)
    '2025-11-24T16:00:00.123Z'
    """
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def make_uuid(rng: random.Random) -> str:
    """Return a random (version 4) UUID of this generator, so that a seed gives the same ids."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def make_shopper(seed: int, rank: int, *, absurd_clocks: bool) -> Shopper:
    """Make the shopper of an activity rank with their devices; always the same for a seed.

    Args:
        seed: the shop's.
        rank: 0 is the most active.
        absurd_clocks: whether a device of theirs may live in another decade. Not for the most active: one such
            device would turn a share of a per mille into one of per cents.
    """
    rng = random.Random(f"{seed}/{rank}")  # noqa: S311  sample data
    first, last = rng.choice(catalogue.FIRST_NAMES), rng.choice(catalogue.LAST_NAMES)
    shopper = Shopper(
        user_id=f"u-{rng.getrandbits(32):08x}{rank:06d}",
        name=f"{first} {last}",
        email=f"{first}.{last}{rank}@mail.example".lower(),
        place=rng.choice(catalogue.PLACES),
        plan=rng.choice(catalogue.PLANS),
        rng=rng,
    )
    mobiles = rng.choice((0, 1, 1, 1, 2))
    shopper.devices = [_web(shopper, rng) for _ in range(rng.choice((1, 1, 2)))]
    shopper.devices += [_app(shopper, rng) for _ in range(mobiles)]
    if rng.random() < 0.04:  # a club member whom the shop's own tills know
        shopper.devices.append(_till(shopper, rng))
    for device in shopper.devices:
        device.clock_offset_ms, device.stamps_sent_at = _clock(rng, absurd=absurd_clocks)
        if device.source_id == "tills" or rng.random() < 0.5:
            device.user_id = shopper.user_id  # logged in on an earlier day
    return shopper


def _clock(rng: random.Random, *, absurd: bool) -> tuple[int, bool]:
    """Return a clock's offset in ms, and whether the SDK stamps `sentAt` (a few old ones do not)."""
    luck = rng.random()
    if luck < 0.70:
        return rng.randint(-2_000, 2_000), True
    sign = rng.choice((-1, 1))
    if luck < 0.90:
        return sign * rng.randint(1, 90) * _MINUTE_MS + rng.randint(-999, 999), True
    if luck < 0.985:  # local time taken for UTC
        return sign * rng.randint(1, 12) * _HOUR_MS + rng.randint(-999, 999), True
    if not absurd:
        return 0, True
    return rng.choice((-50, -20, -9, 5, 12)) * _YEAR_MS, rng.random() < 0.5


def _web(shopper: Shopper, rng: random.Random) -> Device:
    browser, place = rng.choice(catalogue.BROWSERS), shopper.place
    rudder = rng.random() < 0.65
    library = {"name": "RudderLabs JavaScript SDK", "version": "3.11.0"}
    ip = f"203.0.113.{rng.randint(1, 254)}"
    context: dict[str, Any] = {
        "library": library if rudder else {"name": "analytics.js", "version": "next-1.76.0"},
        "locale": place.locale,
        "userAgent": browser.user_agent,
    }
    if rudder:
        context |= {
            "ip": ip,
            "os": {"name": browser.os_name, "version": browser.os_version},
            "screen": {"width": browser.width, "height": browser.height},
            "timezone": place.timezone,
        }
    return Device(
        shopper=shopper,
        anonymous_id=make_uuid(rng),
        mobile=False,
        source_id="web",
        shape=rng.choice((Shape.SINGLE, Shape.SINGLE, Shape.BATCH)) if rudder else Shape.SINGLE,
        gzipped=False,
        original_key="originalTimestamp" if rudder else "timestamp",
        context=context,
        ip=ip,
        user_agent=browser.user_agent,
        clock_offset_ms=0,
        stamps_sent_at=True,
        latency_ms=rng.randint(15, 120),
    )


def _app(shopper: Shopper, rng: random.Random) -> Device:
    phone, place = rng.choice(catalogue.PHONES), shopper.place
    android = phone.os_name == "Android"
    build = rng.choice((("5.2.0", "5200"), ("5.1.3", "5130"), ("4.9.0", "4900")))
    agent = f"MillraceOutdoor/{build[0]} ({phone.os_name} {phone.os_version}; {phone.model})"
    context: dict[str, Any] = {
        "app": {"name": catalogue.SHOP_NAME, "version": build[0], "build": build[1], "namespace": "example.millrace"},
        "device": {
            "id": make_uuid(rng),
            "type": "Android" if android else "iOS",
            "manufacturer": phone.manufacturer,
            "model": phone.model,
            "name": phone.name,
        },
        "library": {"name": "rudder-android-library" if android else "rudder-ios-library", "version": "1.26.2"},
        "locale": place.locale,
        "network": {"carrier": place.carrier, "wifi": rng.random() < 0.5},
        "os": {"name": phone.os_name, "version": phone.os_version},
        "timezone": place.timezone,
    }
    if android:
        context["screen"] = {"width": phone.width, "height": phone.height}
    else:
        del context["app"]["build"], context["app"]["namespace"], context["device"]["manufacturer"]
    return Device(
        shopper=shopper,
        anonymous_id=make_uuid(rng),
        mobile=True,
        source_id="android" if android else "ios",
        shape=Shape.BATCH if rng.random() < 0.9 else Shape.ARRAY,
        gzipped=rng.random() < 0.6,
        original_key="originalTimestamp",
        context=context,
        ip=f"198.51.100.{rng.randint(1, 254)}",
        user_agent=agent,
        clock_offset_ms=0,
        stamps_sent_at=True,
        latency_ms=rng.randint(40, 250),
    )


def _till(shopper: Shopper, rng: random.Random) -> Device:
    device = _app(shopper, rng)
    device.source_id, device.shape = "tills", Shape.LINES
    device.gzipped = rng.random() < 0.5
    device.context["library"] = {"name": "analytics-python", "version": "2.3.3"}
    return device

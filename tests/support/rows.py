"""Rows of the archive as a believable shop would leave them: for tests of storage, and for measuring it."""

import datetime as dt
import json
import random
import uuid

import pyarrow as pa

from millrace.schemas.event import ARCHIVE

START = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)

_EVENTS = ("Product Viewed", "Product Added", "Checkout Started", "Order Completed", "Search", None)
_PATHS = ("/", "/cart", "/checkout", "/search", *(f"/products/{number}" for number in range(300)))
_AGENTS = tuple(
    f"Mozilla/5.0 ({system}) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{major}.0.0.0 Safari/537.36"
    for system in ("Windows NT 10.0; Win64; x64", "Macintosh; Intel Mac OS X 10_15_7", "X11; Linux x86_64")
    for major in range(110, 140)
)


def archive_rows(
    count: int, *, start: dt.datetime = START, seconds: float = 5, users: int = 500, seed: int = 0
) -> pa.Table:
    """Return rows released within `seconds` of `start`, sorted as in a file; the same for a seed."""
    random_ = random.Random(seed)  # noqa: S311  the same every time
    rows = sorted((_row(random_, start, seconds, users) for _ in range(count)), key=_in_file_order)
    return pa.Table.from_pylist(rows, schema=ARCHIVE)


def _in_file_order(row: dict[str, object]) -> tuple[object, object]:
    return row["user_key"], row["order_index"]


def _row(random_: random.Random, start: dt.datetime, seconds: float, users: int) -> dict[str, object]:
    user = random_.randrange(users)
    released = start + dt.timedelta(microseconds=random_.randrange(int(seconds * 1e6)))
    occurred = released - dt.timedelta(seconds=10)
    path = random_.choice(_PATHS)
    name = random_.choice(_EVENTS)
    known = random_.random() < 0.4
    anonymous = str(uuid.UUID(int=user * 7919))
    return dict.fromkeys(ARCHIVE.names) | {
        "message_id": str(uuid.UUID(int=random_.getrandbits(128))),
        "type": "track" if name else "page",
        "event": name,
        "user_id": f"user-{user:06}" if known else None,
        "anonymous_id": anonymous,
        "user_key": f"user-{user:06}" if known else anonymous,
        "source_id": "web",
        "original_timestamp": occurred,
        "sent_at": occurred + dt.timedelta(milliseconds=random_.randrange(3000)),
        "received_at": occurred + dt.timedelta(milliseconds=random_.randrange(3000)),
        "published_at": occurred + dt.timedelta(milliseconds=random_.randrange(3100)),
        "occurred_at": occurred,
        "released_at": released,
        "is_late": False,
        "late_by_ms": 0,
        "order_index": int(occurred.timestamp() * 1e6) * 16 + random_.randrange(16),
        "context_page_url": f"https://shop.example.com{path}",
        "context_page_path": path,
        "context_page_title": f"Shop {path}",
        "context_page_referrer": "https://www.google.com/" if random_.random() < 0.3 else None,
        "context_library_name": "analytics.js",
        "context_library_version": "2.11.1",
        "context_locale": random_.choice(("en-US", "de-DE", "fr-FR")),
        "context_timezone": "Europe/Berlin",
        "context_ip": f"203.0.113.{user % 256}",
        "context_user_agent": _AGENTS[user % len(_AGENTS)],
        "properties": json.dumps(
            {
                "product_id": f"p{random_.randrange(3000)}",
                "price": random_.randrange(100, 20_000) / 100,
                "quantity": random_.randrange(1, 4),
                "currency": "EUR",
                "cart_id": f"{random_.getrandbits(64):016x}",
            }
        ),
        "envelope_id": str(random_.getrandbits(53)),
        "envelope_index": random_.randrange(100),
        "date": released.date(),
    }

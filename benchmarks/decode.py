"""What decoding costs, in µs of one core an event: `python -m benchmarks.decode`.

Events are those of an analytics SDK, 100 an envelope but where the case says otherwise; the best of several rounds.
"""

import gzip
import json
import random
import time
from collections.abc import Callable
from typing import Any

from google.pubsub_v1.types import PublishRequest

from millrace.local.templates import PreparedRequests
from millrace.schemas.envelope import Envelope
from millrace.transforms.contexts import Contexts
from millrace.transforms.pending import Limits, Pending

EVENTS = 8_000
ROUNDS = 7
NOW_US = 1_800_000_000_000_000

Event = dict[str, Any]


def web(draw: random.Random, number: int) -> Event:
    """Return a track event as RudderStack's JavaScript SDK sends it."""
    return {
        "type": "track",
        "event": draw.choice(["Product Viewed", "Product Added", "Order Completed"]),
        "messageId": f"{draw.getrandbits(128):032x}",
        "userId": f"user-{draw.randrange(20_000)}",
        "anonymousId": f"{draw.getrandbits(128):032x}",
        "originalTimestamp": f"2026-11-23T10:{number % 60:02d}:00.{number % 1000:03d}Z",
        "sentAt": "2026-11-23T10:59:59.120Z",
        "channel": "web",
        "integrations": {"All": True},
        "context": {
            "userAgent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/129.0.0.0 Safari/537.36",
            "locale": "en-GB",
            "timezone": "Europe/Berlin",
            "page": {
                "url": f"https://shop.example.com/p/{number % 500}?utm_source=google",
                "path": f"/p/{number % 500}",
                "referrer": "https://www.google.com/",
                "search": "?utm_source=google",
                "title": "Running shoes",
            },
            "library": {"name": "RudderLabs JavaScript SDK", "version": "3.7.5"},
            "campaign": {"source": "google"},
        },
        "properties": {"product_id": f"p{number % 500}", "price": 19.9, "quantity": 1, "currency": "EUR"},
    }


def mobile(draw: random.Random, number: int) -> Event:
    """Return a track event as a mobile SDK sends it."""
    event = web(draw, number)
    event["channel"] = "mobile"
    event["context"] = {
        "app": {"name": "Shop", "version": "7.2.0", "build": "7201", "namespace": "com.example.shop"},
        "device": {"id": f"{number:016x}", "manufacturer": "Google", "model": "Pixel 9", "type": "Android"},
        "library": {"name": "analytics-kotlin", "version": "1.19.1"},
        "locale": "de-DE",
        "network": {"bluetooth": False, "carrier": "Telekom", "cellular": True, "wifi": False},
        "os": {"name": "Android", "version": "16"},
        "screen": {"density": 2.625, "height": 2400, "width": 1080},
        "timezone": "Europe/Berlin",
        "userAgent": "Dalvik/2.1.0 (Linux; U; Android 16; Pixel 9 Build/BP2A)",
    }  # fmt: skip
    return event


def unknown(draw: random.Random, number: int) -> Event:
    """Return a web event with fields that the wire format does not list: the slower path."""
    event = web(draw, number)
    event["tenant"] = "north"
    event["context"]["page"]["experiment"] = {"id": 7, "arm": "b"}
    return event


def paged(draw: random.Random, number: int) -> Event:
    """Return a page view, whose name stands in its properties."""
    event = web(draw, number)
    del event["event"]
    return event | {"type": "page", "properties": {"name": "Home", "path": "/", "title": "Welcome"}}


def envelopes(
    make: Callable[[random.Random, int], Event], per_envelope: int, *, packed: bool = False
) -> list[Envelope]:
    """Return EVENTS events in envelopes."""
    draw = random.Random(1)
    found = []
    for first in range(0, EVENTS, per_envelope):
        events = [make(draw, first + offset) for offset in range(per_envelope)]
        value: Any = events[0] if per_envelope == 1 else {"batch": events, "sentAt": "2026-11-23T10:59:59.500Z"}
        body = json.dumps(value, separators=(",", ":")).encode()
        attributes = {"source_id": "web", "received_at": "2026-11-23T10:59:59.700Z", "ip": "203.0.113.7"}
        if packed:
            body, attributes["content-encoding"] = gzip.compress(body, 6), "gzip"
        found.append(Envelope(body, attributes, str(first), NOW_US, NOW_US))
    return found


def shop(per_envelope: int, *, unlisted: bool = False) -> list[Envelope]:
    """Return EVENTS events of the sample shop: many users, on the web and on phones.

    `unlisted`: with a member in each context that the wire format does not list.
    """
    requests = PreparedRequests("projects/local/topics/shop", per_envelope, 20)
    found: list[Envelope] = []
    while len(found) * per_envelope < EVENTS:
        request = PublishRequest.deserialize(requests.take(NOW_US / 1e6).payload)
        for message in request.messages:
            body = message.data
            if unlisted:
                body = body.replace(b'"context":{', b'"context":{"experiment":{"id":7,"arm":"b"},')
            found.append(Envelope(body, dict(message.attributes), str(len(found)), NOW_US, NOW_US))
    return found[: EVENTS // per_envelope]


CASES: dict[str, list[Any]] = {
    "web, 100 an envelope": [web, 100],
    "web, one an envelope": [web, 1],
    "page views": [paged, 100],
    "mobile": [mobile, 100],
    "unknown fields": [unknown, 100],
}


def main() -> None:
    """Print the table."""
    print(f"{'case':28}{'us/event':>10}{'events/s':>12}{'bytes/event':>13}")
    plain = [json.dumps(web(random.Random(1), number)).encode() for number in range(EVENTS)]
    spent = min(_spent(lambda: [json.loads(each) for each in plain]) for _ in range(ROUNDS))
    print(f"{'(json.loads, to compare)':28}{spent / EVENTS * 1e6:10.2f}{EVENTS / spent:12,.0f}{len(plain[0]):13,}")
    for name, (make, per_envelope) in CASES.items():
        for packed in (False, True) if name.startswith("web, 100") else (False,):
            measure(name + (", gzip" if packed else ""), envelopes(make, per_envelope, packed=packed))

    measure("shop, 100 an envelope", shop(100))
    measure("shop, contexts seen before", shop(100), Contexts())
    measure("shop, one an envelope", shop(1))
    measure("unknown context field", shop(100, unlisted=True))


def _spent(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(name: str, given: list[Envelope], contexts: Contexts | None = None) -> None:
    """Print one row; without `contexts` each round starts knowing none."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        pending = Pending(Limits(), contexts or Contexts())
        for envelope in given:
            pending.add(envelope)
        decoding = pending.take(NOW_US)
        best = min(best, time.process_time() - start)
        if decoding.batch.num_rows != EVENTS:
            raise RuntimeError(f"{name}: {decoding.batch.num_rows} of {EVENTS} events came out")
    size = sum(len(each.body) for each in given) // EVENTS
    print(f"{name:28}{best / EVENTS * 1e6:10.2f}{EVENTS / best:12,.0f}{size:13,}")


if __name__ == "__main__":
    main()

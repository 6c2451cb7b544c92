"""The shop's own servers: events by the real SDKs, rudder-sdk-python and segment-analytics-python, as they are.

A process of its own, so that an SDK that waits for a collector that is gone holds nobody up:

    python -m millrace.local.sdks --url http://127.0.0.1:8080 --data data

Each SDK tells what it could not send (on_error), and when its queue is empty (flush): all else was answered with 200.
"""

import argparse
import itertools
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rudderstack.analytics.client
import segment.analytics.client

from millrace.local import catalogue
from millrace.local.journal import Journal, Kind, Record
from millrace.local.sources import SERVER, make_sources

_PAUSE_S = 1.0
"""Between the events of one SDK: a small part of the traffic, always under way."""
_RETRIES = 3
_GRACE_S = 8.0
"""For what is in an SDK's queue at the end."""

Step = tuple[str, dict[str, Any]]
"""A method of the SDK, and its arguments."""


class Sdk(NamedTuple):
    """One SDK, and what it reported as not sent."""

    client: Any
    failed: list[str]
    """Message ids."""


def make_sdks(url: str, key: str) -> list[Sdk]:
    """Return a client of each SDK, made as its users make one."""
    sdks = []
    for kind in (rudderstack.analytics.client.Client, segment.analytics.client.Client):
        failed: list[str] = []
        client = kind(key, host=url, gzip=True, max_retries=_RETRIES, on_error=_noting(failed))
        sdks.append(Sdk(client, failed))
    return sdks


def _noting(failed: list[str]) -> Callable[[Exception, list[dict[str, Any]]], None]:
    def note(_error: Exception, events: list[dict[str, Any]]) -> None:
        failed.extend(event["messageId"] for event in events)

    return note


def steps(rng: random.Random) -> Iterator[Step]:
    """Yield what happens in the back of the shop, without end; each type of event there is."""
    for number in itertools.count():
        user_id = f"u-back-{rng.randrange(200):03}"
        order = {"order_id": f"o-{rng.getrandbits(40):010x}", "carrier": rng.choice(("DHL", "Posten", "La Poste"))}
        product = rng.choice(catalogue.PRODUCTS)
        yield "track", {"user_id": user_id, "event": "Order Shipped", "properties": order}
        yield "track", {"user_id": user_id, "event": "Order Delivered", "properties": order}
        yield "identify", {"user_id": user_id, "traits": {"plan": rng.choice(catalogue.PLANS), "orders": number}}
        company = rng.choice(catalogue.COMPANIES)
        yield "group", {"user_id": user_id, "group_id": company.lower().replace(" ", "-"), "traits": {"name": company}}
        yield "page", {"user_id": user_id, "name": product.name, "properties": {"product_id": product.product_id}}
        yield "screen", {"user_id": user_id, "name": "Till", "properties": {"till": rng.randrange(4)}}
        yield "alias", {"previous_id": f"guest-{rng.getrandbits(32):08x}", "user_id": user_id}


class Work:
    """One SDK in a thread: an event, a flush, a pause."""

    def __init__(self, sdk: Sdk, journal: Journal, over: threading.Event) -> None:
        self._sdk = sdk
        self._journal = journal
        self._over = over
        self._open: str | None = None  # handed in, not settled
        self.answered = 0
        self.given_up = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def finish(self, deadline_s: float) -> None:
        """Wait for it until a moment of the monotonic clock; what is open then is given up."""
        self._thread.join(max(0.0, deadline_s - time.monotonic()))
        left = self._open
        if left is not None:
            self._settle(left, answered=False)

    def _run(self) -> None:
        for method, arguments in steps(random.Random()):  # noqa: S311  sample data
            _, event = getattr(self._sdk.client, method)(**arguments)
            message_id = self._open = event["messageId"]
            self._sdk.client.flush()
            self._settle(message_id, answered=message_id not in self._sdk.failed)
            self._sdk.failed.clear()
            if self._over.wait(_PAUSE_S):
                return

    def _settle(self, message_id: str, *, answered: bool) -> None:
        self._open = None
        records = [Record(Kind.EVENT, message_id)]
        if answered:
            self._journal.answered(records)
            self.answered += 1
        else:
            self._journal.given_up(records)
            self.given_up += 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Send until SIGINT or SIGTERM. Returns 0; 1 where anything was given up."""
    parser = argparse.ArgumentParser(prog="python -m millrace.local.sdks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", required=True, help="the collector's")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where journal and write keys are (data/)")
    options = parser.parse_args(arguments)
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    with Journal(options.data / "journal.csv") as journal:
        works = [Work(sdk, journal, over) for sdk in make_sdks(options.url, make_sources(options.data)[SERVER])]
        over.wait()
        deadline_s = time.monotonic() + _GRACE_S
        for work in works:
            work.finish(deadline_s)
    answered, given_up = (sum(getattr(work, name) for work in works) for name in ("answered", "given_up"))
    left = f", {given_up:,} given up" if given_up else ""
    print(f"The SDKs have ended: {answered:,} events answered{left}.", file=sys.stderr, flush=True)
    return 1 if given_up else 0


if __name__ == "__main__":
    sys.exit(main())

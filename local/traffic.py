"""Traffic: publish the shop's bodies, or prepared ones, to a Pub/Sub topic at a steady rate.

In a thread (`Traffic`), or as a process of its own, which prints its counts as one JSON line a second:

    python -m millrace.local.traffic --topic projects/local/topics/events --rate 1000 --seconds 60
"""

import argparse
import dataclasses
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from google.pubsub_v1.types import PublishRequest

from millrace.local.pace import Paced, Source, check_rate
from millrace.local.publish import Publisher
from millrace.local.send import Counts, Hook, Request, SendError
from millrace.local.shop import Expected, Sent, Shop
from millrace.local.templates import PreparedRequests

_MOST_MESSAGES = 500  # a request; Pub/Sub takes 1,000 and 10 MB
_MOST_BYTES = 4_000_000


class ShopRequests:
    """The shop's bodies, each a message, as many in a request as are due. `tag`: the bodies, a tuple of `Sent`."""

    least = 1

    def __init__(self, shop: Iterator[Sent], topic: str) -> None:
        self._shop = shop
        self._topic = topic

    def take(self, events: int) -> Request:
        """Return a request of at least one body, and of `events` events as far as one request may hold them."""
        request = PublishRequest.pb(PublishRequest(topic=self._topic))
        sents: list[Sent] = []
        taken = size = 0
        while taken < max(1, events) and len(sents) < _MOST_MESSAGES and size < _MOST_BYTES:
            sent = next(self._shop)
            request.messages.add(data=sent.body, attributes=sent.attributes)
            sents.append(sent)
            taken += sent.events
            size += len(sent.body)
        return Request(request.SerializeToString(), len(sents), taken, tuple(sents))


class PreparedSource:
    """Prepared requests (millrace.local.templates), received as they are taken. `tag`: None."""

    def __init__(self, requests: PreparedRequests, clock: Callable[[], float] = time.time) -> None:
        self.least = requests.events
        self._requests = requests
        self._clock = clock

    def take(self, events: int) -> Request:  # noqa: ARG002  a request's size is fixed
        """Return the next prepared request."""
        return self._requests.take(self._clock())


class Traffic(Paced):
    """Publishes from a source in the background, until stopped or for some seconds.

    `acknowledged` holds what the acknowledged bodies have to come to, `maybe` those of attempts without an answer;
    both stay empty for prepared requests, and where `remember` is off (a message id takes some 100 bytes).
    """

    def __init__(
        self,
        source: Source,
        topic: str,
        rate: float,
        seconds: float | None = None,
        *,
        in_flight: int = 4,
        deadline_s: float = 15.0,
        remember: bool = False,
        on_acknowledged: Hook | None = None,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            source: makes the requests.
            topic: `projects/P/topics/T`.
            rate: events a second; 0 for as many as the broker takes.
            seconds: stop after so many; None for no end.
            in_flight: requests under way at once.
            deadline_s: how long the broker has for an answer, before a request is sent again.
            remember: add up `acknowledged` and `maybe`.
            on_acknowledged: called with each acknowledged request and the broker's serialised answer, from the sending
                threads, one at a time; `acknowledged` is not added up then.

        Raises:
            ValueError: a negative rate.
        """
        check_rate(rate)  # before anything is opened
        self.acknowledged = Expected()
        self.maybe = Expected()
        publisher = Publisher(
            topic,
            in_flight,
            deadline_s,
            on_acknowledged=on_acknowledged or (_adder(self.acknowledged) if remember else None),
            on_maybe=_adder(self.maybe) if remember else None,
        )
        super().__init__(source, publisher, rate, seconds)


def _adder(expected: Expected) -> Hook:
    def add(request: Request, _answer: object) -> None:
        for sent in request.tag or ():
            expected.add(sent)

    return add


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish until the seconds are over, SIGINT or SIGTERM; a JSON line a second, the last one with `"done": true`.

    Returns 0; 2 where the broker refuses (no such topic, no permission), with the reason on stderr.
    """
    options = _parser().parse_args(arguments)
    source: Source
    if options.events_per_message:
        prepared = PreparedRequests(options.topic, options.events_per_message, options.messages, options.users)
        source = PreparedSource(prepared)
    else:
        seed = options.seed if options.seed is not None else time.time_ns()
        source = ShopRequests(Shop(seed, options.users), options.topic)
    traffic = Traffic(source, options.topic, options.rate, options.seconds, in_flight=options.in_flight)
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    began_s = time.monotonic()
    traffic.start()
    next_s = 1.0
    while not over.is_set() and not traffic.wait(0):
        over.wait(0.05)
        if time.monotonic() - began_s >= next_s:
            _print(traffic.counts(), began_s, done=False)
            next_s += 1.0
    try:
        counts = traffic.stop()
    except SendError as error:
        print(f"traffic: {error}", file=sys.stderr)
        return 2
    _print(counts, began_s, done=True)
    return 0


def _print(counts: Counts, began_s: float, *, done: bool) -> None:
    line: dict[str, Any] = {
        "seconds": round(time.monotonic() - began_s, 3),
        "cpu_seconds": round(time.process_time(), 3),
        **dataclasses.asdict(counts),
        "done": done,
    }
    print(json.dumps(line), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m millrace.local.traffic", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--topic", required=True, help="projects/P/topics/T; the broker: PUBSUB_EMULATOR_HOST, or Google"
    )
    parser.add_argument(
        "--rate", type=float, default=1_000, help="events a second, 0: all the broker takes (%(default)s)"
    )
    parser.add_argument("--seconds", type=float, help="stop after so many seconds (no end)")
    parser.add_argument("--users", type=int, default=2_000, help="shoppers (%(default)s)")
    parser.add_argument("--seed", type=int, help="the shop's: the same ids and steps again (a new one each time)")
    parser.add_argument("--in_flight", type=int, default=4, help="requests under way at once (%(default)s)")
    parser.add_argument(
        "--events_per_message", type=int, default=0, help="prepared messages of so many sane events (0: the shop's own)"
    )
    parser.add_argument("--messages", type=int, default=50, help="a request, of prepared messages (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Pace: hand a sender requests at a steady rate, from a thread of its own."""

import threading
import time
from typing import Protocol, Self

from millrace.local.send import Counts, Request, Sender

_TICK_S = 0.02
_FORGIVEN_S = 1.0  # what a stalled receiver costs is not made up for by a burst


class Source(Protocol):
    """Where requests come from."""

    least: int
    """Events that are due before a request is worth making."""

    def take(self, events: int) -> Request:
        """Return a request of about `events` events, or fewer; `tag` is what it holds."""
        ...


def check_rate(rate: float) -> None:
    """Raise ValueError for a negative rate."""
    if rate < 0:
        raise ValueError(f"rate must be 0 or more, got {rate}")


class Paced:
    """Sends from a source in the background, until stopped or for some seconds."""

    def __init__(self, source: Source, sender: Sender, rate: float, seconds: float | None = None) -> None:
        """Prepare; `start` begins.

        Args:
            source: makes the requests.
            sender: sends them; it is closed at the end.
            rate: events a second; 0 for as many as the sender takes.
            seconds: stop after so many; None for no end.

        Raises:
            ValueError: a negative rate.
        """
        check_rate(rate)
        self._source = source
        self._sender = sender
        self._rate = rate
        self._seconds = seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pace", daemon=True)
        self._failure: Exception | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Begin to send."""
        self._thread.start()
        return self

    def stop(self, grace_s: float = 10.0) -> Counts:
        """Make no more requests, wait at most `grace_s` seconds for the answers to those made, and return the counts.

        Raises:
            SendError: the other side refused a request for good.
        """
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()
        counts = self._sender.close(grace_s)
        if self._failure is not None:
            raise self._failure
        self._sender.raise_refusal()
        return counts

    def counts(self) -> Counts:
        """Return the counts so far."""
        return self._sender.counts()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until all requests of the given seconds are made; True when they are, or when it failed."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._send()
        except Exception as error:  # noqa: BLE001  stop() raises it where someone sees it
            self._failure = error

    def _send(self) -> None:
        began_s = origin_s = time.monotonic()
        made = 0
        while not self._stopping.is_set():
            now_s = time.monotonic()
            if self._seconds is not None and now_s - began_s >= self._seconds:
                return
            due = int((now_s - origin_s) * self._rate) - made if self._rate else max(self._source.least, 5_000)
            if due < self._source.least:
                self._sender.raise_refusal()
                self._stopping.wait(_TICK_S)
                continue
            if self._rate and due > _FORGIVEN_S * self._rate + self._source.least:
                origin_s, made = now_s, 0
                continue
            request = self._source.take(due)
            made += request.events
            while not self._sender.submit(request):
                if self._stopping.is_set():
                    return  # it never left; nobody counts on it

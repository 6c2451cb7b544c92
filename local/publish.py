"""Publish serialised requests to a Pub/Sub topic, whatever happens to the broker, and count what it acknowledged.

Requests travel as bytes: google-cloud-pubsub builds an object a message, which costs more than all else here.
"""

import dataclasses
import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc

from millrace.transforms.pubsub import open_channel

_METHOD = "/google.pubsub.v1.Publisher/Publish"
_RETRIED = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0


class PublishError(Exception):
    """The broker refuses for good: no such topic, no permission, a malformed request."""


class Request(NamedTuple):
    """A serialised PublishRequest and what it holds."""

    payload: bytes
    messages: int
    events: int
    tag: Any = None
    """The caller's own; handed back when the request is settled."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """What became of all requests so far. The topic holds from `events` to `events + maybe_events` events."""

    messages: int = 0
    """In requests that the broker acknowledged."""
    events: int = 0
    """In requests that the broker acknowledged."""
    bytes: int = 0
    """Of acknowledged requests."""
    maybe_events: int = 0
    """In attempts that ended without an answer: the broker may hold them, besides what it acknowledged later."""
    unsent_events: int = 0
    """In requests given up at the end, unacknowledged; those that may have got through are in `maybe_events` too."""
    retries: int = 0


class Publisher:
    """Sends requests by several threads; retries what may pass, for ever, until it is closed."""

    def __init__(
        self,
        topic: str,
        in_flight: int = 4,
        deadline_s: float = 15.0,
        on_acknowledged: Callable[[Request, bytes], None] | None = None,
        on_maybe: Callable[[Request, bytes], None] | None = None,
    ) -> None:
        """Connect, lazily.

        Args:
            topic: `projects/P/topics/T`.
            in_flight: requests under way at once, and as many again waiting; more use more memory.
            deadline_s: how long the broker has for an answer, before the request is sent again.
            on_acknowledged: called once for every acknowledged request, with the broker's serialised PublishResponse,
                from the sending threads, one at a time.
            on_maybe: the same, for every attempt that ended without an answer; with no bytes.
        """
        self._topic = topic
        self._deadline_s = deadline_s
        self._on_acknowledged = on_acknowledged
        self._on_maybe = on_maybe
        self._channel = open_channel()
        self._call = self._channel.unary_unary(_METHOD)
        self._metadata = (("x-goog-request-params", f"topic={topic}"),)
        self._lock = threading.Lock()
        self._counts = Counts()
        self._refusal: PublishError | None = None
        self._giving_up = threading.Event()
        self._calls: set[Any] = set()
        self._waiting: queue.Queue[Request | None] = queue.Queue(maxsize=in_flight)
        self._threads = [
            threading.Thread(target=self._work, name=f"publish-{number}", daemon=True) for number in range(in_flight)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, request: Request, wait_s: float = 0.1) -> bool:
        """Hand in a request; False where there is no room for it within `wait_s` seconds.

        Raises:
            PublishError: the broker refused an earlier one for good.
        """
        self.raise_refusal()
        try:
            self._waiting.put(request, timeout=wait_s)
        except queue.Full:
            return False
        return True

    def counts(self) -> Counts:
        """Return what became of all requests so far."""
        with self._lock:
            return self._counts

    def raise_refusal(self) -> None:
        """Raise PublishError where the broker refused a request for good."""
        if self._refusal is not None:
            raise self._refusal

    def close(self, grace_s: float = 10.0) -> Counts:
        """Send what was handed in, for at most `grace_s` seconds; then give up the rest, and return the counts."""
        timer = threading.Timer(grace_s, self._give_up)
        timer.start()
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()
        timer.cancel()
        timer.join()
        self._channel.close()
        return self.counts()

    def _work(self) -> None:
        while (request := self._waiting.get()) is not None:
            try:
                self._send(request)
            except Exception as error:  # noqa: BLE001  a caller's hook: the thread must go on emptying the queue
                self._refusal = PublishError(f"{self._topic}: {error!r}")

    def _send(self, request: Request) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._giving_up.is_set() and self._refusal is None:
            answer, error = self._attempt(request)
            if error is None:
                self._settle(request, answer)
                return
            if error.code() not in _RETRIED:
                self._refusal = PublishError(f"{self._topic}: {error.code().name}: {error.details()}")
                break
            # Nothing left this machine where there was no connection; all else may have arrived.
            maybe = "failed to connect" not in (error.details() or "").lower()
            with self._lock:
                self._add(retries=1, maybe_events=request.events if maybe else 0)
                if maybe and self._on_maybe is not None:
                    self._on_maybe(request, b"")
            self._giving_up.wait(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
        with self._lock:
            self._add(unsent_events=request.events)

    def _attempt(self, request: Request) -> tuple[bytes, Any]:
        """Send once, and return the serialised answer, or the RpcError; a cancelled call is its own error."""
        call = self._call.future(request.payload, timeout=self._deadline_s, metadata=self._metadata)
        with self._lock:
            self._calls.add(call)
        if self._giving_up.is_set():
            call.cancel()
        try:
            error = call.exception()
            return (b"", error) if error is not None else (call.result(), None)
        except grpc.FutureCancelledError:
            return b"", call
        finally:
            with self._lock:
                self._calls.discard(call)

    def _give_up(self) -> None:
        self._giving_up.set()
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            call.cancel()

    def _settle(self, request: Request, answer: bytes) -> None:
        with self._lock:
            self._add(messages=request.messages, events=request.events, bytes=len(request.payload))
            if self._on_acknowledged is not None:
                self._on_acknowledged(request, answer)

    def _add(self, **more: int) -> None:
        changed = {name: getattr(self._counts, name) + count for name, count in more.items()}
        self._counts = dataclasses.replace(self._counts, **changed)

"""Send requests by several threads, again and again where that may help, and count what was answered."""

import abc
import dataclasses
import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0

Hook = Callable[["Request", Any], None]


class SendError(Exception):
    """The other side refuses for good: no such topic, no such key, a malformed request."""


class UnansweredError(Exception):
    """An attempt that ended without a yes or no, and may be made again."""

    def __init__(self, *, maybe: bool, after_s: float = 0.0) -> None:
        super().__init__()
        self.maybe = maybe
        """Whether the other side may have kept what was sent."""
        self.after_s = after_s
        """How long it asks to be left alone."""


class Request(NamedTuple):
    """A request as its sender needs it, and what it holds."""

    payload: Any
    messages: int
    events: int
    tag: Any = None
    """The caller's own; handed back when the request is settled."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """What became of all requests so far. The other side holds from `events` to `events + maybe_events` events."""

    messages: int = 0
    """In requests that were answered."""
    events: int = 0
    """In requests that were answered."""
    bytes: int = 0
    """Of answered requests."""
    maybe_events: int = 0
    """In attempts that ended without an answer: the other side may hold them, besides what it answered later."""
    unsent_events: int = 0
    """In requests given up at the end, unanswered; those that may have got through are in `maybe_events` too."""
    retries: int = 0


class Sender(abc.ABC):
    """Sends requests by several threads; retries what may pass, for ever, until it is closed."""

    def __init__(
        self,
        name: str,
        in_flight: int,
        *,
        on_answered: Hook | None = None,
        on_maybe: Hook | None = None,
        on_given_up: Hook | None = None,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            name: of the other side, for messages.
            in_flight: requests under way at once, and as many again waiting; more use more memory.
            on_answered: called once for every answered request, with the answer, from the sending threads, one at a
                time.
            on_maybe: the same, for every attempt that ended without an answer though it may have been kept; with None.
            on_given_up: the same, for every request that was never answered, at the end; with None.
        """
        self._name = name
        self._hooks = {"answered": on_answered, "maybe": on_maybe, "given_up": on_given_up}
        self._lock = threading.Lock()
        self._counts = Counts()
        self._refusal: SendError | None = None
        self._giving_up = threading.Event()
        self._waiting: queue.Queue[Request | None] = queue.Queue(maxsize=in_flight)
        self._threads = [
            threading.Thread(target=self._work, name=f"send-{number}", daemon=True) for number in range(in_flight)
        ]

    @abc.abstractmethod
    def _attempt(self, request: Request) -> Any:
        """Send once, and return the answer.

        Raises:
            UnansweredError: it may be tried again.
            SendError: never again, and nothing else either.
        """

    @abc.abstractmethod
    def _size(self, request: Request) -> int:
        """Return a request's bytes."""

    def _cancel(self) -> None:  # noqa: B027  not every client can
        """End the attempts under way, where that is possible."""

    @abc.abstractmethod
    def _disconnect(self) -> None:
        """Close what was opened; no attempt is under way any more."""

    def start(self) -> None:
        """Begin to send."""
        for thread in self._threads:
            thread.start()

    def submit(self, request: Request, wait_s: float = 0.1) -> bool:
        """Hand in a request; False where there is no room for it within `wait_s` seconds.

        Raises:
            SendError: the other side refused an earlier one for good.
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
        """Raise SendError where the other side refused a request for good."""
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
        self._disconnect()
        return self.counts()

    def _give_up(self) -> None:
        self._giving_up.set()
        self._cancel()

    def _work(self) -> None:
        while (request := self._waiting.get()) is not None:
            try:
                self._send(request)
            except Exception as error:  # noqa: BLE001  a caller's hook: the thread must go on emptying the queue
                self._refusal = SendError(f"{self._name}: {error!r}")

    def _send(self, request: Request) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._giving_up.is_set() and self._refusal is None:
            try:
                answer = self._attempt(request)
            except SendError as refusal:
                self._refusal = refusal
            except UnansweredError as error:
                if error.maybe:
                    self._tell("maybe", request, None, retries=1, maybe_events=request.events)
                else:
                    self._tell("", request, None, retries=1)
                self._giving_up.wait(max(pause_s, error.after_s))
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
            else:
                size = self._size(request)
                self._tell("answered", request, answer, messages=request.messages, events=request.events, bytes=size)
                return
        self._tell("given_up", request, None, unsent_events=request.events)

    def _tell(self, what: str, request: Request, answer: Any, **more: int) -> None:
        """Count, and call the hook; one thread at a time."""
        hook = self._hooks.get(what)
        with self._lock:
            changed = {name: getattr(self._counts, name) + count for name, count in more.items()}
            self._counts = dataclasses.replace(self._counts, **changed)
            if hook is not None:
                hook(request, answer)

"""A subscription that a test plays by hand: scripted pulls, recorded calls, a clock that moves when told."""

import collections
import threading
from collections.abc import Sequence
from typing import Any

import grpc

from millrace.broker import protocol as pb
from tests.support.batches import NOON_US


class Clock:
    """Stands in for the `time` module: it is noon, until `now_s` is moved."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return 1_000.0 + self.now_s

    def time_ns(self) -> int:
        return NOON_US * 1_000 + round(self.now_s * 1e9)


class RpcError(grpc.RpcError):
    """A failed call."""

    def __init__(self, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        super().__init__(code)
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code


def message(name: str, at_s: float = 0.0, body: bytes = b"x", **attributes: str) -> Any:
    """Return a received message, published at_s seconds after noon; its ack id is its name."""
    received = pb.PullResponse().received_messages.add(ack_id=name)
    received.message.message_id, received.message.data = f"id-{name}", body
    received.message.attributes.update(attributes)
    micros = NOON_US + round(at_s * 1e6)
    received.message.publish_time.FromMicroseconds(micros)
    return received


class Subscription:
    """A `SubscriptionClient` whose pulls answer what was given, one after the other, and else wait."""

    subscription = "projects/tests/subscriptions/scripted"

    def __init__(self) -> None:
        self.asked: list[int] = []
        """max_messages of each pull."""
        self.acknowledged: list[list[str]] = []
        self.extended: list[tuple[list[str], int]] = []
        self.ack_errors: list[Exception] = []
        """What the next calls of acknowledge raise."""
        self.extend_errors: list[Exception] = []
        self.get_errors: list[Exception] = []
        self.seen: list[Any] = []
        """What `watch` returned at each pull."""
        self.watch: Any = lambda: None
        self.waiting = 0
        self._script: collections.deque[Any] = collections.deque()
        self._changed = threading.Condition()
        self._ended = False

    def give(self, *answers: Any) -> None:
        """Add answers: a list of messages each, or an exception."""
        with self._changed:
            self._script.extend(answers)
            self._changed.notify_all()

    def end(self) -> None:
        """Let pulls wait no more: they find nothing."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def cancel_pulls(self) -> None:
        """As end: what waits finds nothing."""
        self.end()

    def pull(self, max_messages: int, _timeout_s: float) -> Sequence[Any]:
        self.seen.append(self.watch())
        with self._changed:
            self.asked.append(max_messages)
            self.waiting += 1
            self._changed.wait_for(lambda: self._script or self._ended)
            self.waiting -= 1
            answer = self._script.popleft() if self._script else ()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def acknowledge(self, ack_ids: Sequence[str]) -> None:
        self.acknowledged.append(list(ack_ids))
        if self.ack_errors:
            raise self.ack_errors.pop(0)

    def extend(self, ack_ids: Sequence[str], seconds: int) -> None:
        self.extended.append((list(ack_ids), seconds))
        if self.extend_errors:
            raise self.extend_errors.pop(0)

    def ack_deadline_s(self) -> int:
        if self.get_errors:
            raise self.get_errors.pop(0)
        return 20

    def close(self) -> None:
        """Nothing to close."""

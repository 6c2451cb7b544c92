"""Publish serialised requests to a Pub/Sub topic, whatever happens to the broker, and count what it acknowledged.

Requests travel as bytes: google-cloud-pubsub builds an object a message, which costs more than all else here.
"""

from typing import Any

import grpc

from millrace.local.send import Hook, Request, Sender, SendError, UnansweredError
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


class Publisher(Sender):
    """Publishes serialised PublishRequests; an answer is the broker's serialised PublishResponse."""

    def __init__(
        self,
        topic: str,
        in_flight: int = 4,
        deadline_s: float = 15.0,
        on_acknowledged: Hook | None = None,
        on_maybe: Hook | None = None,
    ) -> None:
        """Connect, lazily, and begin.

        Args:
            topic: `projects/P/topics/T`.
            in_flight: requests under way at once, and as many again waiting.
            deadline_s: how long the broker has for an answer, before the request is sent again.
            on_acknowledged: called once for every acknowledged request, with the answer.
            on_maybe: called for every attempt that ended without an answer.
        """
        super().__init__(topic, in_flight, on_answered=on_acknowledged, on_maybe=on_maybe)
        self._deadline_s = deadline_s
        self._channel = open_channel()
        self._call = self._channel.unary_unary(_METHOD)
        self._metadata = (("x-goog-request-params", f"topic={topic}"),)
        self._calls: set[Any] = set()
        self.start()

    def _attempt(self, request: Request) -> Any:
        answer, error = self._ask(request)
        if error is None:
            return answer
        if error.code() not in _RETRIED:
            raise SendError(f"{self._name}: {error.code().name}: {error.details()}")
        # Nothing left this machine where there was no connection; all else may have arrived.
        raise UnansweredError(maybe="failed to connect" not in (error.details() or "").lower())

    def _ask(self, request: Request) -> tuple[bytes, Any]:
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

    def _size(self, request: Request) -> int:
        return len(request.payload)

    def _cancel(self) -> None:
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            call.cancel()

    def _disconnect(self) -> None:
        self._channel.close()

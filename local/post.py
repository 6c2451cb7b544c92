"""Post calls to the collector over connections that stay open, whatever happens to it, and count what it answered."""

import urllib3
from urllib3.exceptions import HTTPError, NewConnectionError
from urllib3.util import Timeout

from millrace.local.calls import Answer, Call, is_kept
from millrace.local.send import Hook, Request, Sender, SendError, UnansweredError

_LATER = frozenset((408, 425, 429))


class Poster(Sender):
    """Sends requests whose payload is a `Call` and whose tag is a `Sent`; an answer is an `Answer`, 200 or 4xx."""

    def __init__(
        self,
        url: str,
        in_flight: int = 8,
        deadline_s: float = 10.0,
        *,
        on_answered: Hook | None = None,
        on_maybe: Hook | None = None,
        on_given_up: Hook | None = None,
    ) -> None:
        """Connect, lazily, and begin.

        Args:
            url: the collector's.
            in_flight: connections, each with one request at a time, and as many requests again waiting.
            deadline_s: how long the collector has for an answer, before the request is sent again.
            on_answered: called once for every answered request, with the answer.
            on_maybe: called for every attempt that ended without an answer.
            on_given_up: called at the end for every request that was never answered.
        """
        super().__init__(url, in_flight, on_answered=on_answered, on_maybe=on_maybe, on_given_up=on_given_up)
        self._pool = urllib3.connection_from_url(
            url, maxsize=in_flight, block=True, timeout=Timeout(deadline_s), retries=False
        )
        self.start()

    def _attempt(self, request: Request) -> Answer:
        call: Call = request.payload
        try:
            response = self._pool.urlopen("POST", call.path, body=call.body, headers=call.headers)
        except NewConnectionError as error:  # nothing left this machine
            raise UnansweredError(maybe=False) from error
        except HTTPError as error:
            raise UnansweredError(maybe=True) from error
        answer = Answer(response.status, response.data)
        if answer.status >= 500 or answer.status in _LATER:
            raise UnansweredError(maybe=answer.status >= 500, after_s=_seconds(response.headers.get("retry-after")))
        if request.tag.message_ids and not is_kept(answer):
            path = call.path.partition("?")[0]
            raise SendError(f"{self._name}{path}: {answer.status}: {answer.body[:300].decode(errors='replace')}")
        return answer

    def _size(self, request: Request) -> int:
        return len(request.payload.body)

    def _disconnect(self) -> None:
        self._pool.close()


def _seconds(retry_after: str | None) -> float:
    return float(retry_after) if retry_after and retry_after.isdigit() else 0.0

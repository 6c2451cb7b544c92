"""Webhook requests: a delivery becomes requests, and their answers become outcomes, one for each event."""

import asyncio
import dataclasses
import time
import zlib
from collections.abc import Sequence

from millrace.sinks.http_answers import outcomes_of
from millrace.sinks.http_connection import BrokenError, Request
from millrace.sinks.http_pool import NoConnectionError, Pool
from millrace.sinks.signature import request_id, signatures
from millrace.sinks.sink import Delivery, Fault, Outcome, Retry, SinkDownError

_SPLIT_S = 8.0
"""A batch that was refused is sent event by event for so long at most; what is left comes in a later delivery."""
_SPLIT_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class Sender:
    """What an open webhook sends with.

    Attributes:
        pool: of connections to the receiver.
        method: of HTTP.
        keys: to sign with; none: not signed.
        headers: of every request; checked, names in lower case.
        single: one event a request.
        is_lines: a batch is one line an event, not a JSON array.
        gzip: whether bodies are compressed.
        timeout_s: for a whole answer.
        down_on: statuses by which the receiver as a whole does not work.
    """

    pool: Pool
    method: bytes
    keys: tuple[bytes, ...] = dataclasses.field(repr=False)
    headers: tuple[tuple[bytes, bytes], ...] = dataclasses.field(repr=False)
    single: bool
    is_lines: bool
    gzip: bool
    timeout_s: float
    down_on: tuple[int, ...]

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        """Send the events of a delivery.

        Raises:
            SinkDownError: the receiver as a whole does not work, and none of them has reached it.
        """
        texts, ids = delivery.json(), delivery.message_ids
        if self.single:
            alone = [self._alone(text, each) for text, each in zip(texts, ids, strict=True)]
            return _together(await asyncio.gather(*alone))
        outcomes, is_refused = await self._send(texts, ids)
        if is_refused and len(ids) > 1:
            return _together(await self._one_by_one(texts, delivery))
        return outcomes

    async def _one_by_one(self, texts: Sequence[bytes], delivery: Delivery) -> list[Outcome | SinkDownError]:
        """Send the events of a batch that was refused, each by itself: one may be to blame, and the others may not pay.

        Users side by side, a user's events one after the other: behind one that has to be tried again they wait.
        """
        ends_s = asyncio.get_running_loop().time() + _SPLIT_S
        at_once = asyncio.Semaphore(_SPLIT_AT_ONCE)
        waits = Retry(Fault.FAILED, "the receiver refused its batch, and it was not sent by itself yet")
        found: list[Outcome | SinkDownError] = [waits] * len(delivery)
        users: dict[object, list[int]] = {}
        for row, (user, is_ordered) in enumerate(zip(delivery.user_keys, delivery.is_ordered, strict=True)):
            users.setdefault(user if is_ordered else row, []).append(row)

        async def send(rows: list[int]) -> None:
            for row in rows:
                async with at_once:
                    if asyncio.get_running_loop().time() >= ends_s:
                        return
                    found[row] = await self._alone(texts[row], delivery.message_ids[row])
                if isinstance(found[row], Retry | SinkDownError):
                    return

        await asyncio.gather(*map(send, users.values()))
        return found

    async def _alone(self, text: bytes, message_id: str) -> Outcome | SinkDownError:
        try:
            outcomes, _ = await self._send([text], [message_id])
        except SinkDownError as error:
            return error
        return outcomes[0]

    async def _send(self, texts: Sequence[bytes], ids: Sequence[str]) -> tuple[list[Outcome], bool]:
        """Send events in one request; return their outcomes, and whether the request was refused as a whole (4xx)."""
        now_s = time.time()
        request = self._request(texts, ids, int(now_s))
        try:
            answer = await self.pool.request(request, self.timeout_s)
        except NoConnectionError as error:
            raise SinkDownError(str(error)) from None
        except BrokenError as error:
            return [Retry(Fault.FAILED, str(error))] * len(ids), False
        except TimeoutError:
            late = Retry(Fault.TIMED_OUT, f"the receiver gave no whole answer in {self.timeout_s:g} s")
            return [late] * len(ids), False
        return outcomes_of(answer, ids, time.time(), self.down_on), 400 <= answer.status < 500

    def _request(self, texts: Sequence[bytes], ids: Sequence[str], now_s: int) -> Request:
        if self.single:
            (body,) = texts
        elif self.is_lines:
            body = b"\n".join([*texts, b""])
        else:
            body = b"[%b]" % b",".join(texts)
        name = request_id(ids)
        headers = [
            *self.headers,
            (b"webhook-id", name.encode()),
            (b"idempotency-key", name.encode()),
            (b"webhook-timestamp", b"%d" % now_s),
        ]
        if self.keys:
            headers.append((b"webhook-signature", signatures(self.keys, name, now_s, body).encode()))
        if self.gzip:
            squeeze = zlib.compressobj(1, wbits=31)  # 31: gzip; level 1: 4 to 8 times smaller at 10 us a kilobyte
            body = squeeze.compress(body) + squeeze.flush()
        return Request(self.method, headers, body)


def _together(found: Sequence[Outcome | SinkDownError]) -> list[Outcome]:
    """Return the outcomes; where no event has one by its own merit, the receiver as a whole is down.

    Raises:
        SinkDownError: see above.
    """
    down = next((each for each in found if isinstance(each, SinkDownError)), None)
    if down is not None and all(isinstance(each, Retry | SinkDownError) for each in found):
        raise down
    return [
        Retry(Fault.UNREACHABLE, each.detail, each.after_s) if isinstance(each, SinkDownError) else each
        for each in found
    ]

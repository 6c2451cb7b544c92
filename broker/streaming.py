"""StreamingPull: one task reads what the client settles, the other sends while the client's flow control has room."""

import asyncio
import contextlib
import time
from typing import Any

import grpc

from millrace.broker import protocol as pb
from millrace.broker.catalog import MAX_ACK_DEADLINE_S
from millrace.broker.errors import Refused, invalid, not_found, precondition
from millrace.broker.hub import Hub
from millrace.broker.ordering import Flow
from millrace.broker.resources import Subscription
from millrace.broker.service import Call
from millrace.broker.wire import received

PAGE = 1_000  # messages of one response
LOOK_S = 0.5  # how often a stream looks by itself: for room that came from expired leases, and for its end


async def serve(hub: Hub, subscription: Subscription, first: Any, call: Call) -> None:
    """Serve one stream until its client is done or gone, or its subscription is; raises Refused for a bad request."""
    stream = _Stream(hub, subscription, first, call)
    stream.settle(first)
    sender = asyncio.get_running_loop().create_task(stream.send())
    reader = asyncio.get_running_loop().create_task(stream.read())
    try:
        done, _ = await asyncio.wait((sender, reader), return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in (sender, reader):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Refused, grpc.RpcError):
                await task


class _Stream:
    def __init__(self, hub: Hub, subscription: Subscription, first: Any, call: Call) -> None:
        self._hub = hub
        self._subscription = subscription
        self._call = call
        self._deadline_s = _deadline(first.stream_ack_deadline_seconds)
        self._flow = Flow(first.max_outstanding_messages, first.max_outstanding_bytes)
        self._room = asyncio.Event()

    async def read(self) -> None:
        """Take the client's acks and deadlines until it ends its side."""
        while True:
            request = await self._call.read()
            if not isinstance(request, bytes):
                return
            asked = pb.StreamingPullRequest.FromString(request)
            if asked.subscription or asked.client_id or asked.max_outstanding_messages or asked.max_outstanding_bytes:
                raise invalid("Only the first request of a stream names its subscription, client and flow control.")
            if asked.stream_ack_deadline_seconds:
                self._deadline_s = _deadline(asked.stream_ack_deadline_seconds)
            await self._hub.chaos.pause(0)
            self.settle(asked)

    def settle(self, asked: Any) -> None:
        """Apply the acks, nacks and deadlines of one request."""
        queue = self._subscription.queue
        if len(asked.modify_deadline_ack_ids) != len(asked.modify_deadline_seconds):
            raise invalid("modify_deadline_ack_ids and modify_deadline_seconds differ in length.")
        if asked.ack_ids:
            queue.ack(asked.ack_ids)
        by_deadline: dict[int, list[str]] = {}
        for ack_id, deadline_s in zip(asked.modify_deadline_ack_ids, asked.modify_deadline_seconds, strict=True):
            by_deadline.setdefault(deadline_s, []).append(ack_id)
        for deadline_s, ack_ids in by_deadline.items():
            if not 0 <= deadline_s <= MAX_ACK_DEADLINE_S:
                raise invalid(f"modify_deadline_seconds out of bounds: {deadline_s}")
            queue.modify(ack_ids, deadline_s, time.monotonic())
        self._room.set()
        self._subscription.wake()

    async def send(self) -> None:
        """Send what the flow control has room for, as it comes."""
        subscription, chaos = self._subscription, self._hub.chaos
        while True:
            await chaos.pause(chaos.delay_pull_ms)
            if subscription.deleted:
                raise not_found("Subscription was deleted.")
            if subscription.config.detached:
                raise precondition("Subscription was detached from its topic.")
            self._room.clear()
            messages, size = self._flow.room()
            if not messages:
                subscription.wake()  # others may have room
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._room.wait(), LOOK_S)
                continue
            deadline_s = self._deadline_s or subscription.config.ack_deadline_seconds
            lease, taken = subscription.queue.take(min(messages, PAGE), size, time.monotonic(), deadline_s, self._flow)
            subscription.wake()
            if taken:
                await self._call.write(received(lease, taken))
            else:
                await subscription.wait(LOOK_S)


def _deadline(seconds: int) -> int:
    """Check a stream's ack deadline; 0 stands for the subscription's."""
    if not 0 <= seconds <= MAX_ACK_DEADLINE_S:
        raise invalid(f"stream_ack_deadline_seconds out of bounds: {seconds} is not within 10 .. {MAX_ACK_DEADLINE_S}")
    return seconds

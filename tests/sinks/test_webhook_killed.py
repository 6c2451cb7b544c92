"""The webhook and a receiver that is killed, and comes again."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace.sinks.sink import DELIVERED, Fault, Retry, SinkDownError
from millrace.sinks.webhook import Webhook
from tests.support.node import UnavailableError
from tests.support.raw_http import (
    opened,
)
from tests.support.webhooks import Receiver, delivery, receiving


@pytest.fixture(params=["h2", "h1", "plain"])
def receiver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Receiver]:
    try:
        with receiving(tmp_path, request.param, streams=10) as found:
            yield found
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("single", [False, True])
def test_a_receiver_that_is_killed_and_started_again_gets_every_event(receiver: Receiver, single: bool):
    """Killed with kill -9 in the middle of a run; what was not delivered is sent until it is, as a lane does."""
    parts = [delivery([f"m-{part}-{n}" for n in range(20)]) for part in range(12)]
    faults: list[Fault] = []
    downs: list[str] = []

    async def until_delivered(sink: Webhook, part: int) -> None:
        left = list(parts[part].message_ids)
        while left:
            try:
                outcomes = await sink.deliver(delivery(left))
            except SinkDownError as error:
                downs.append(error.detail)
                if len(downs) == 1:
                    receiver.start()  # on the same port
                await asyncio.sleep(0.01)
                continue
            faults.extend(each.fault for each in outcomes if isinstance(each, Retry))
            left = [each for each, outcome in zip(left, outcomes, strict=True) if outcome != DELIVERED]

    async def run() -> None:
        async with opened(receiver.hook("/slow/30", single=single)) as sink:
            first = [asyncio.create_task(until_delivered(sink, part)) for part in range(6)]
            while not receiver.requests():
                await asyncio.sleep(0.002)
            receiver.kill()
            second = [asyncio.create_task(until_delivered(sink, part)) for part in range(6, 12)]
            async with asyncio.timeout(120):
                await asyncio.gather(*first, *second)

    asyncio.run(run())
    arrived = [each for request in receiver.requests() for each in request.ids]
    assert set(arrived) == {each for part in parts for each in part.message_ids}
    assert downs
    assert set(faults) <= {Fault.FAILED, Fault.UNREACHABLE}

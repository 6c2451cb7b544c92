"""The sink redis while its server is stopped, killed, stuck or emptied: each event is in its profile once."""

import asyncio
import contextlib
import itertools
import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import redis

from millrace.sinks.redis import Redis
from millrace.sinks.sink import DELIVERED, Delivery, SinkDownError
from tests.support.deliveries import Remembered, archived, delivery
from tests.support.redis import RedisServer, running_redis

_numbers = itertools.count()
USERS = 7


@pytest.fixture
def prefix() -> str:
    return f"outage{next(_numbers)}:"


def _delivery(first: int, count: int, *, is_ordered: bool = True) -> Delivery:
    numbers = range(first, first + count)
    rows = [archived(f"m{n}", n / 1_000, user=f"u{n % USERS}") for n in numbers]
    return delivery(rows, range(first + 1, first + count + 1), is_ordered=[is_ordered] * count)


def _events(server: RedisServer, prefix: str) -> list[int]:
    with redis.Redis.from_url(server.url, decode_responses=True) as asking:
        return [int(asking.hget(f"{prefix}u{user}", "events") or "0") for user in range(USERS)]


def _expected(count: int) -> list[int]:
    return [len(range(user, count, USERS)) for user in range(USERS)]


async def _deliver_at_last(sink: Redis, each: Delivery, memory: Remembered, again: list[str]) -> None:
    """Deliver as a lane does: open again after the destination was down, and offer the same again."""
    async with asyncio.timeout(120):
        while True:
            try:
                assert await sink.deliver(each) == [DELIVERED] * len(each)
            except SinkDownError as down:
                again.append(down.detail)
                await asyncio.sleep(0.01)
                with contextlib.suppress(SinkDownError):
                    await sink.open(memory)
            else:
                return


@pytest.mark.parametrize("is_ordered", [True, False])
def test_a_run_with_stops_and_kills_at_any_moment_counts_each_event_once(
    redis_server: RedisServer, prefix: str, is_ordered: bool
):
    sink = Redis(redis_server.url, prefix=prefix)
    chance = random.Random(11)  # noqa: S311  not for secrets
    again: list[str] = []
    done = threading.Event()

    def hurt() -> None:
        for how in ("kill", "stop", "kill", "kill", "stop"):
            done.wait(chance.uniform(0.05, 0.2))
            getattr(redis_server, how)()
            redis_server.start()
        done.set()

    async def main() -> int:
        memory = Remembered()
        await sink.open(memory)
        hurting = asyncio.create_task(asyncio.to_thread(hurt))
        count = 0
        while not done.is_set():
            await _deliver_at_last(sink, _delivery(count, 50, is_ordered=is_ordered), memory, again)
            count += 50
        await hurting
        await _deliver_at_last(sink, _delivery(count - 50, 60, is_ordered=is_ordered), memory, again)
        await sink.close()
        return count + 10

    count = asyncio.run(main())
    assert _events(redis_server, prefix) == _expected(count)
    assert len(again) >= 5


def test_an_answer_that_never_came_is_not_counted_twice(redis_server: RedisServer, prefix: str):
    """The server stands still while it has the request; it applies it when it goes on, and once more is offered all."""
    sink = Redis(redis_server.url, prefix=prefix, timeout_s=1.0)

    async def main() -> None:
        memory = Remembered()
        await sink.open(memory)
        await sink.deliver(_delivery(0, 10))
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(SinkDownError, match="does not answer in time"):
                await sink.deliver(_delivery(5, 20))
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)
        await sink.open(memory)
        assert await sink.deliver(_delivery(5, 30)) == [DELIVERED] * 30
        await sink.close()

    asyncio.run(main())
    assert _events(redis_server, prefix) == _expected(35)


def test_a_delivery_that_is_cancelled_may_be_applied_and_its_resend_adds_nothing(redis_server, prefix):
    sink = Redis(redis_server.url, prefix=prefix)

    async def main() -> None:
        await sink.open(Remembered())
        await sink.deliver(_delivery(0, 10))
        for first in range(10, 200, 10):
            under_way = asyncio.create_task(sink.deliver(_delivery(first, 10)))
            for _ in range(first % 7):
                await asyncio.sleep(0)
            under_way.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await under_way
            assert await sink.deliver(_delivery(first, 10)) == [DELIVERED] * 10
        await sink.close()

    asyncio.run(main())
    assert _events(redis_server, prefix) == _expected(200)


@pytest.mark.parametrize("is_ordered", [True, False])
def test_deliveries_that_race_with_the_same_events_count_each_once(redis_server, prefix, is_ordered):
    sink = Redis(redis_server.url, prefix=prefix)

    async def main() -> None:
        await sink.open(Remembered())
        for start in range(0, 1_000, 100):
            race = [_delivery(start, count, is_ordered=is_ordered) for count in (100, 50, 100, 70)]
            await asyncio.gather(*map(sink.deliver, race))
        await sink.close()

    asyncio.run(main())
    assert _events(redis_server, prefix) == _expected(1_000)


def test_a_server_that_lost_its_memory_has_what_came_since_and_a_replay_makes_it_whole(tmp_path: Path, prefix: str):
    """Without an append-only file an older picture of the data is back; what is offered again counts where it lacks."""
    with running_redis(tmp_path, ("--save", "", "--appendonly", "no")) as server:
        sink = Redis(server.url, prefix=prefix)
        memory = Remembered()
        again: list[str] = []

        async def deliver(*deliveries: Delivery) -> None:
            await sink.open(memory)
            for each in deliveries:
                await _deliver_at_last(sink, each, memory, again)
            await sink.close()

        asyncio.run(deliver(_delivery(0, 70)))
        with redis.Redis.from_url(server.url) as asking:
            asking.save()  # the picture
        asyncio.run(deliver(_delivery(70, 70)))
        server.kill()
        server.start()
        lost = _events(server, prefix)
        asyncio.run(deliver(_delivery(0, 140)))
        whole = _events(server, prefix)
    assert lost == _expected(70)
    assert whole == _expected(140)


def test_a_sink_that_is_closed_is_down() -> None:
    async def main() -> Any:
        with pytest.raises(SinkDownError, match="no connection to Redis"):
            await Redis("redis://127.0.0.1:1/0").deliver(_delivery(0, 1))

    asyncio.run(main())

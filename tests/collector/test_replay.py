"""Replay in virtual time: in order, behind live traffic, while Pub/Sub answers; nothing in the spool stops the rest."""

import asyncio
import itertools
import logging
import math

import pytest

from millrace.collector.breaker import BreakerState
from millrace.collector.publish import Failure
from millrace.collector.replay import CHUNK_BYTES
from tests.support.delivering import MemoryPubSub, MemorySpool, delivery, message
from tests.support.virtual_time import run_virtually


def spool_with(*names: str, body_bytes: int = 0) -> MemorySpool:
    spool = MemorySpool()
    for name in names:
        spool.append(message(name, body_bytes)).result()
    return spool


NAMES = [f"m{number}" for number in range(2_500)]


def test_what_an_earlier_process_left_is_sent_oldest_first() -> None:
    async def main() -> None:
        async with delivery(spool=spool_with(*NAMES)) as running:
            await asyncio.sleep(1)
            assert running.pubsub.stored == NAMES
            assert running.spool.held == {}
            assert running.deliverer.replay.messages == len(NAMES)

    run_virtually(main())


def test_a_message_that_is_spooled_while_the_replay_is_idle_wakes_it() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(unfit=frozenset({"a"}))) as running:
            await running.send("proof")
            await asyncio.sleep(0.1)
            running.spool.takes_s = 0.01
            sending = asyncio.create_task(running.send("a"))
            await asyncio.sleep(0.005)
            running.pubsub.unfit = frozenset()
            assert await sending == ["spooled"]
            await asyncio.sleep(0.001)
            assert running.pubsub.stored == ["proof", "a"]

    run_virtually(main())


def test_the_oldest_message_alone_is_the_probe_and_no_client_waits_for_it() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(takes_s=math.inf)) as running:
            await running.send("a", "b")
            running.pubsub.requests.clear()
            started_s = _now()
            for number in range(100):
                await asyncio.sleep(0.1)
                assert await running.send(f"later{number}") == ["spooled"]
            assert _now() - started_s < 10.1  # none of them waited
            assert {tuple(one.names) for one in running.pubsub.requests} == {("a",)}
            running.pubsub.takes_s = 0.01
            await asyncio.sleep(30)
            assert running.deliverer.breaker.state is BreakerState.CLOSED
            assert running.pubsub.stored == ["a", "b", *(f"later{number}" for number in range(100))]

    run_virtually(main())


def test_nothing_is_sent_between_probes_while_the_breaker_is_open() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(fails=Failure.REFUSED), spool_with(*NAMES)) as running:
            await asyncio.sleep(60)
            at_s = [one.at_s for one in running.pubsub.requests]
            assert [len(one.names) for one in running.pubsub.requests[1:]] == [1] * (len(at_s) - 1)
            pauses_s = [round(after - before, 3) for before, after in itertools.pairwise(at_s)]
            assert pauses_s[:6] == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0]
            assert set(pauses_s[6:]) == {5.0}

    run_virtually(main())


def test_it_keeps_to_its_rate_and_to_its_size_of_requests() -> None:
    async def main() -> None:
        spool = spool_with(*NAMES[:40], body_bytes=100_000)
        async with delivery(spool=spool, replay_bytes_per_s=1_000_000) as running:
            await asyncio.sleep(10)
            sent = [one for one in running.pubsub.requests if one.at_s <= 2]
            assert sum(len(one.names) for one in sent) * 100_000 <= 2_000_000 + CHUNK_BYTES
            assert all(len(one.names) * 100_000 <= CHUNK_BYTES for one in running.pubsub.requests)
            assert running.pubsub.stored == NAMES[:40]

    run_virtually(main())


def test_live_traffic_goes_first_but_cannot_stop_it_for_ever() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(takes_s=0.1), in_flight=1) as running:
            sending = []
            for number in range(120):  # faster than one request at a time: some always wait
                sending.append(asyncio.create_task(running.send(f"live{number}")))
                await asyncio.sleep(0.02)
                if number == 10:
                    running.spool.append(message("old"))
                    running.deliverer.replay.wake()
            await asyncio.gather(*sending)
            stored = running.pubsub.stored
            assert 11 + 50 - 5 <= stored.index("old") <= 11 + 50 + 15, "about a second's messages overtake it"

    run_virtually(main())


def test_a_slow_pubsub_is_replayed_to_though_live_traffic_is_spooled() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(takes_s=3.0), spool_with(*NAMES)) as running:
            assert await running.send("live") == ["spooled"]
            started_s = _now()
            for number in range(50):
                await asyncio.sleep(0.5)
                assert await running.send(f"live{number}") == ["spooled"]
            assert _now() - started_s < 25.1  # none of them waited for it
            assert running.pubsub.stored[: len(NAMES)] == NAMES
            await asyncio.sleep(60)
            assert running.pubsub.stored == [*NAMES, "live", *(f"live{number}" for number in range(50))]

    run_virtually(main())


def test_unfit_messages_are_found_and_set_aside_and_the_rest_goes_on_in_order(caplog) -> None:
    bad = frozenset({"m3", "m4", "m700", "m2499"})
    caplog.set_level(logging.ERROR)

    async def main() -> None:
        async with delivery(MemoryPubSub(unfit=bad), spool_with(*NAMES)) as running:
            await asyncio.sleep(30)
            assert running.pubsub.stored == [name for name in NAMES if name not in bad]
            assert running.spool.names() == ["m2499"], "nothing was taken after it, so it may not be its fault"
            await running.send("later")
            await asyncio.sleep(15)
            assert running.aside == [(name, "told to fail: unfit") for name in ("m3", "m4", "m700", "m2499")]
            assert running.spool.held == {}
            assert running.deliverer.replay.set_aside == 4
            assert len(running.pubsub.requests) < 100

    run_virtually(main())
    said = [record.getMessage().partition(" unfit")[0] for record in caplog.records]
    assert said == [
        *["Pub/Sub will not take a message of 2 bytes, it is set aside: told to fail:"] * 2,
        "Pub/Sub will not take a message of 4 bytes, it is set aside: told to fail:",
        "Pub/Sub calls all that is spooled",
        "Pub/Sub will not take a message of 5 bytes, it is set aside: told to fail:",
    ]


def test_messages_are_not_set_aside_while_it_may_be_the_topic_that_is_at_fault() -> None:
    async def main() -> None:
        async with delivery(spool=spool_with("proof")) as running:
            await asyncio.sleep(1)
            running.pubsub.fails = Failure.UNFIT  # say somebody gave the topic a schema
            await running.send("a", "b")
            await asyncio.sleep(60)
            assert running.spool.names() == ["a", "b"]
            assert running.aside == []
            running.pubsub.fails = None
            running.pubsub.unfit = frozenset({"a"})
            await asyncio.sleep(60)
            assert (running.spool.names(), running.aside) == ([], [("a", "told to fail: unfit")])

    run_virtually(main())


@pytest.mark.parametrize("error", [OSError("the disk is gone"), RuntimeError("unforeseen")])
def test_a_spool_that_cannot_be_read_is_tried_again_for_ever(error) -> None:
    async def main() -> None:
        async with delivery(spool=spool_with(*NAMES)) as running:
            running.spool.broken = error
            await asyncio.sleep(600)
            assert running.deliverer.replay.failing
            running.spool.broken = None
            await asyncio.sleep(5)
            assert running.pubsub.stored == NAMES
            assert not running.deliverer.replay.failing

    run_virtually(main())


def _now() -> float:
    return asyncio.get_running_loop().time()

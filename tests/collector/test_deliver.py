"""Delivery in virtual time: where messages go, in which groups, how long their senders wait, and what is shed."""

import asyncio
import math

import pytest

from millrace.collector.breaker import BreakerState
from millrace.collector.deliver import OVERHEAD_BYTES
from millrace.collector.delivery import (
    DeliverySettings,
    DeliveryTotals,
    How,
    Left,
    NotDurableError,
    Undelivered,
    Unready,
)
from millrace.collector.message import Message
from millrace.collector.publish import MAX_BYTES, Failure
from tests.support.delivering import Delivery, MemoryPubSub, MemorySpool, Request, delivery, end_of, message
from tests.support.virtual_time import run_virtually


def test_messages_go_at_once_and_what_comes_meanwhile_goes_together() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(takes_s=0.1), in_flight=2) as running:
            sending = asyncio.gather(*(_send_at(running, name, at_s) for name, at_s in ARRIVALS))
            assert await sending == ["published"] * 6
            assert [Request(round(at_s, 6), names) for at_s, names in running.pubsub.requests] == [
                Request(0.0, ["a"]),
                Request(0.01, ["b"]),
                Request(0.1, ["c", "d", "e"]),
                Request(0.5, ["f"]),
            ]

    run_virtually(main())


ARRIVALS = [("a", 0.0), ("b", 0.01), ("c", 0.02), ("d", 0.03), ("e", 0.04), ("f", 0.5)]


async def _send_at(running: Delivery, name: str, at_s: float) -> str:
    await asyncio.sleep(at_s)
    return (await running.send(name))[0]


def test_a_request_holds_no_more_than_1000_messages_and_9_mb() -> None:
    async def main() -> None:
        async with delivery(in_flight=1, waiting_bytes=100_000_000) as running:
            await running.send(*(f"small{number}" for number in range(2_500)))
            assert [len(one.names) for one in running.pubsub.requests] == [1_000, 1_000, 500]
            running.pubsub.requests.clear()
            await running.send(*(f"large{number}" for number in range(5)), body_bytes=MAX_BYTES // 2 - 100)
            await running.send("huge", body_bytes=MAX_BYTES + 1)
            assert [len(one.names) for one in running.pubsub.requests] == [2, 2, 1, 1]

    run_virtually(main())


def test_all_messages_of_a_request_are_durable_or_it_is_none() -> None:
    async def main() -> None:
        async with delivery() as running:
            assert await running.deliverer.deliver([message("a"), message("b")]) == (How.PUBLISHED,)
            assert await running.deliverer.deliver([]) == (How.PUBLISHED,)
            running.pubsub.fails = Failure.REFUSED
            assert await running.deliverer.deliver([message("c"), message("d")]) == (How.SPOOLED,)
            running.spool.refuses = OSError("no room")
            with pytest.raises(NotDurableError):
                await running.deliverer.deliver([message("e"), message("f")])
            assert running.deliverer.counts.undelivered[Undelivered.SPOOL_FAILED] == 2
            running.spool.refuses = None

    run_virtually(main())


def test_what_is_not_acknowledged_within_the_deadline_is_spooled_and_the_next_do_not_wait() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(takes_s=math.inf)) as running:
            started_s = _now()
            assert await running.send("a") == ["spooled"]
            assert _now() - started_s == pytest.approx(1.0, abs=0.01)
            assert running.deliverer.state().breaker is not BreakerState.CLOSED
            started_s = _now()
            assert await running.send("b", "c") == ["spooled", "spooled"]
            assert _now() == pytest.approx(started_s, abs=0.001)
            assert running.spool.appended == ["a", "b", "c"]

    run_virtually(main())


def test_messages_behind_a_stalled_request_are_spooled_when_it_turns_out_to_be_one() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(takes_s=math.inf), in_flight=1) as running:
            ends = await asyncio.gather(*(_timed(running, name, at_s) for name, at_s in [("a", 0.0), ("b", 0.6)]))
            assert [(end, round(took_s, 2)) for end, took_s in ends] == [("spooled", 1.0), ("spooled", 0.4)]
            assert [one.names for one in running.pubsub.requests] == [["a"]]

    run_virtually(main())


def test_messages_that_cannot_be_acknowledged_in_time_any_more_are_spooled_without_a_try() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(takes_s=0.9), in_flight=1) as running:
            ends = await asyncio.gather(*(_timed(running, name, at_s) for name, at_s in [("a", 0.0), ("b", 0.1)]))
            assert [(end, round(took_s, 2)) for end, took_s in ends] == [("published", 0.9), ("spooled", 0.75)]

    run_virtually(main())


async def _timed(running: Delivery, name: str, at_s: float) -> tuple[str, float]:
    await asyncio.sleep(at_s)
    started_s = _now()
    return (await running.send(name))[0], _now() - started_s


def test_a_straggler_among_requests_that_pass_does_not_open_the_breaker() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(takes_s=math.inf)) as running:
            straggling = asyncio.create_task(running.send("slow"))
            await asyncio.sleep(0.1)
            running.pubsub.takes_s = 0.0
            for number in range(20):
                await asyncio.sleep(0.05)
                assert await running.send(f"quick{number}") == ["published"]
            assert await straggling == ["spooled"]
            assert running.deliverer.breaker.openings == 0

    run_virtually(main())


def test_a_failure_that_passes_is_tried_again_within_the_deadline() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(fails=Failure.PASSING)) as running:
            sending = asyncio.create_task(running.send("a"))
            await asyncio.sleep(0.06)
            running.pubsub.fails = None
            assert await sending == ["published"]
            assert [one.names for one in running.pubsub.requests] == [["a"]] * 3
            assert running.deliverer.live.retries == 2
            assert running.spool.appended == []

    run_virtually(main())


def test_a_service_that_is_away_opens_the_breaker_after_three_failures() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(fails=Failure.PASSING)) as running:
            started_s = _now()
            assert await running.send("a") == ["spooled"]
            assert _now() - started_s < 0.2
            assert len(running.pubsub.requests) == 3

    run_virtually(main())


def test_a_refusal_opens_the_breaker_at_once_and_says_why_until_it_is_over() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(fails=Failure.REFUSED)) as running:
            assert await running.send("a") == ["spooled"]
            assert len(running.pubsub.requests) == 1
            state = running.deliverer.state()
            assert (state.unready, state.breaker) == (Unready.PUBSUB_REFUSES, BreakerState.OPEN)
            assert "told to fail: refused" in state.why
            running.pubsub.fails = None
            await asyncio.sleep(10)
            assert running.deliverer.state()[:3] == (None, "", BreakerState.CLOSED)
            assert running.pubsub.stored == ["a"]

    run_virtually(main())


def test_an_unfit_message_goes_to_the_spool_and_leaves_the_breaker_closed() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(unfit=frozenset({"bad"}))) as running:
            assert await running.send("good") == ["published"]
            assert await running.send("bad") == ["spooled"]
            assert running.deliverer.breaker.openings == 0
            assert await running.send("good too") == ["published"]

    run_virtually(main())


def test_neither_pubsub_nor_spool_is_said_and_readiness_returns_so_that_traffic_can_find_out() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(fails=Failure.PASSING), MemorySpool(refuses=OSError("no room"))) as running:
            assert await running.send("a") == ["spool_failed"]
            assert running.deliverer.state().unready is Unready.NOWHERE
            await asyncio.sleep(6)
            assert running.deliverer.state().unready is None
            running.pubsub.fails = None
            assert await running.send("b") == ["published"]
            assert running.deliverer.state().breaker is BreakerState.CLOSED

    run_virtually(main())


def test_not_durable_says_when_to_come_back_in_whole_seconds() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(fails=Failure.PASSING), MemorySpool(refuses=OSError("no room"))) as running:
            with pytest.raises(NotDurableError) as raised:
                await running.deliverer.deliver([message("a")])
            assert (raised.value.reason, raised.value.retry_after_s) == (Undelivered.SPOOL_FAILED, 1.0)
            for number in range(10):  # traffic that probes in vain
                await asyncio.sleep(5)
                await running.send(f"probe{number}")
            with pytest.raises(NotDurableError) as raised:
                await running.deliverer.deliver([message("b")])
            assert raised.value.retry_after_s == 5.0

    run_virtually(main())


def test_a_spool_whose_disk_hangs_is_waited_for_so_long_and_then_does_not_get_the_message() -> None:
    async def main() -> None:
        async with delivery(
            MemoryPubSub(fails=Failure.REFUSED), MemorySpool(takes_s=20.0), spool_wait_s=2.0
        ) as running:
            started_s = _now()
            assert await running.send("a") == ["spool_slow"]
            assert _now() - started_s == pytest.approx(2.0, abs=0.01)
            assert running.deliverer.state().waiting_messages == 0
            await asyncio.sleep(30)
            assert running.spool.appended == []

    run_virtually(main())


def test_what_a_hanging_disk_has_already_stays_accounted_and_is_replayed_though_its_sender_was_turned_away() -> None:
    async def main() -> None:
        spool = MemorySpool(takes_s=20.0, writes_at_once=True)
        async with delivery(MemoryPubSub(fails=Failure.REFUSED), spool, spool_wait_s=2.0) as running:
            assert await running.send("a") == ["spool_slow"]
            assert running.deliverer.state().waiting_messages == 1
            running.pubsub.fails = None
            await asyncio.sleep(30)
            assert running.deliverer.state().waiting_messages == 0
            assert running.pubsub.stored == ["a"]
            assert running.deliverer.counts.spooled == 0

    run_virtually(main())


def test_more_than_memory_may_hold_is_turned_away_at_once_and_room_returns() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(takes_s=0.5), waiting_bytes=2 * (1_000 + OVERHEAD_BYTES)) as running:
            ends = await running.send("a", "b", "c", "d", body_bytes=1_000)
            assert ends == ["published", "published", "overloaded", "overloaded"]
            assert await running.send("e", body_bytes=2_000 + OVERHEAD_BYTES) == ["published"]
            assert running.deliverer.state()[3:] == (0, 0, 0)
            assert running.deliverer.counts.undelivered[Undelivered.OVERLOADED] == 2

    run_virtually(main())


def test_a_sender_that_goes_away_does_not_take_its_message_along() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(takes_s=0.5)) as running:
            sending = asyncio.create_task(running.send("a"))
            await asyncio.sleep(0.1)
            sending.cancel()
            await asyncio.sleep(1)
            assert running.pubsub.stored == ["a"]
            assert running.deliverer.state().waiting_messages == 0

    run_virtually(main())


def test_what_is_no_message_is_its_own_senders_error() -> None:
    async def main() -> None:
        async with delivery() as running:
            unfit = Message(b"x", {"request_id": "\ud800"})
            ends = await asyncio.gather(
                running.deliverer.deliver([unfit]), running.deliverer.deliver([message("a")]), return_exceptions=True
            )
            assert isinstance(ends[0], ValueError)
            assert end_of(ends[1]) == "published"
            assert running.deliverer.state().waiting_messages == 0

    run_virtually(main())


def test_live_traffic_is_the_probe_where_the_spool_is_empty() -> None:
    async def main() -> None:
        spool = MemorySpool(refuses=OSError("no room"))
        async with delivery(MemoryPubSub(fails=Failure.PASSING), spool) as running:
            assert await running.send("a") == ["spool_failed"]
            spool.refuses, running.pubsub.fails = None, None
            assert await running.send("b") == ["spooled"]  # the breaker's pause is not over
            await asyncio.sleep(2)
            assert running.pubsub.stored == ["b"]
            assert await running.send("c") == ["published"]

    run_virtually(main())


def test_live_traffic_is_the_probe_where_the_spool_cannot_be_read() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(fails=Failure.REFUSED)) as running:
            running.spool.broken = OSError("unreadable")
            assert await running.send("a") == ["spooled"]
            await asyncio.sleep(5)
            running.pubsub.fails = None
            assert await running.send("b") == ["published"]
            assert running.deliverer.breaker.closed
            running.spool.broken = None

    run_virtually(main())


def test_what_comes_while_it_drains_is_spooled_and_sent_with_the_rest() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(fails=Failure.PASSING)) as running:
            await running.send(*(f"m{number}" for number in range(1_500)))
            running.pubsub.fails, running.pubsub.takes_s = None, 0.5
            await asyncio.sleep(0.9)  # the probe has passed
            draining = asyncio.create_task(running.deliverer.drain(10.0))
            await asyncio.sleep(0.1)
            assert running.deliverer.state().unready is Unready.CLOSED
            assert await running.send("late") == ["spooled"]
            assert await draining == Left(0, 0)
            assert running.pubsub.stored[-1] == "late"

    run_virtually(main())


def test_what_is_spooled_takes_no_memory_any_more() -> None:
    async def main() -> None:
        slow = MemorySpool(takes_s=0.1)
        async with delivery(MemoryPubSub(fails=Failure.REFUSED), slow, spool_wait_s=60.0) as running:
            assert set(await running.send(*(f"m{number}" for number in range(10)))) == {"spooled"}
            assert not running.deliverer._spooling._under_way

    run_virtually(main())


def test_drain_waits_for_what_is_on_its_way() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(takes_s=0.5)) as running:
            sending = asyncio.create_task(running.send("a", "b"))
            await asyncio.sleep(0.1)
            assert await running.deliverer.drain(5.0) == Left(0, 0)
            assert await sending == ["published", "published"]
            assert await running.send("late") == ["closed"]

    run_virtually(main())


def test_drain_spools_what_pubsub_does_not_take_in_time_and_says_what_is_left() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(takes_s=math.inf), deadline_s=30.0, in_flight=1) as running:
            sending = asyncio.create_task(running.send("a", "b", "c"))
            await asyncio.sleep(0.1)
            queued = asyncio.create_task(running.send("d"))
            started_s = _now()
            assert await running.deliverer.drain(4.0) == Left(4, 4)
            assert _now() - started_s <= 4.01
            assert await sending + await queued == ["spooled"] * 4
            assert sorted(running.spool.names()) == ["a", "b", "c", "d"]

    run_virtually(main())


def test_drain_empties_the_spool_where_pubsub_takes_it() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(fails=Failure.PASSING), replay_bytes_per_s=1.0) as running:
            await running.send(*(f"m{number}" for number in range(3_000)))
            running.pubsub.fails = None
            await asyncio.sleep(1)  # the probe has passed
            assert len(running.spool.held) > 1_000
            assert await running.deliverer.drain(5.0) == Left(0, 0)
            assert sorted(running.pubsub.stored) == sorted(f"m{number}" for number in range(3_000))

    run_virtually(main())


def test_drain_asks_once_more_whether_pubsub_is_back_though_no_probe_is_due() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(fails=Failure.PASSING)) as running:
            await running.send("a", "b", "c", "d")
            await asyncio.sleep(60)  # the pauses between probes are as long as they get
            while running.deliverer.breaker.pause_left_s(_now()) < 4:
                await asyncio.sleep(0.1)
            running.pubsub.fails = None
            assert await running.deliverer.drain(20.0) == Left(0, 0)
            assert sorted(running.pubsub.stored) == ["a", "b", "c", "d"]

    run_virtually(main())


def test_drain_does_not_wait_for_pubsub_that_is_silent() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(takes_s=math.inf)) as running:
            await running.send("a", "b", "c", "d")
            await asyncio.sleep(60)
            started_s = _now()
            assert (await running.deliverer.drain(60.0)).messages == 4
            assert _now() - started_s < 13  # a try may be under way, and is given its time

    run_virtually(main())


@pytest.mark.parametrize("fails", [None, Failure.REFUSED])
def test_drain_does_not_wait_for_what_will_not_happen(fails) -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(fails=fails)) as running:
            await running.send("a")
            started_s = _now()
            await running.deliverer.drain(60.0)
            assert _now() - started_s < 2.0

    run_virtually(main())


def test_drain_ends_in_time_though_the_disk_hangs() -> None:
    async def main() -> None:
        async with delivery(
            MemoryPubSub(fails=Failure.REFUSED), MemorySpool(takes_s=60.0), spool_wait_s=60.0
        ) as running:
            sending = asyncio.create_task(running.send("a"))
            await asyncio.sleep(0.1)
            started_s = _now()
            await running.deliverer.drain(3.0)
            assert _now() - started_s <= 3.01
            assert await sending == ["closed"]

    run_virtually(main())


def test_everything_is_counted_once() -> None:
    async def main() -> None:
        async with delivery(MemoryPubSub(unfit=frozenset({"bad"}))) as running:
            await running.send("a", "b")
            await running.send("bad")
            await asyncio.sleep(0.1)
            await running.send("c")
            await asyncio.sleep(20)
            running.pubsub.fails = Failure.PASSING
            await running.send("d")
            running.pubsub.fails = None
            await asyncio.sleep(20)
            totals = running.deliverer.totals()
            assert {reason: count for reason, count in totals.undelivered.items() if count} == {}
            assert totals._replace(undelivered={}, request_bytes=0) == DeliveryTotals(
                published=3,
                spooled=2,
                undelivered={},
                replayed=1,
                set_aside=1,
                requests=3,
                request_bytes=0,
                retries=2,
                failures={"passing": 3, "refused": 0, "unfit": 3},
                breaker_openings=1,
            )
            assert totals.request_bytes > 0

    run_virtually(main())


@pytest.mark.parametrize("name", ["deadline_s", "in_flight", "waiting_bytes", "spool_wait_s", "replay_bytes_per_s"])
def test_settings_must_be_positive(name) -> None:
    with pytest.raises(ValueError, match=name):
        DeliverySettings(**{name: 0})


def _now() -> float:
    return asyncio.get_running_loop().time()

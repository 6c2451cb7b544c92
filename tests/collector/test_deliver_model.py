"""Delivery under any weather: nothing for which `deliver` returned is ever anywhere but in Pub/Sub or in the spool."""

import asyncio
import dataclasses
import math
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.collector.deliver import Deliverer
from millrace.collector.publish import Failure
from tests.support.delivering import Delivery, MemoryPubSub, MemorySpool, delivery
from tests.support.virtual_time import run_virtually

BAD = frozenset({"request3", "request11"})  # unfit, whenever


@dataclasses.dataclass
class Weather:
    """How Pub/Sub and the disk are, and for how long."""

    lasts_s: float
    pubsub: dict[str, Any]
    spool: dict[str, Any]


PUBSUB = st.fixed_dictionaries(
    {
        "takes_s": st.sampled_from([0.0, 0.01, 0.3, 0.9, 1.5, math.inf]),
        "fails": st.sampled_from([None, None, *Failure]),
        "stores_failed": st.booleans(),
    }
)
SPOOL = st.fixed_dictionaries(
    {
        "takes_s": st.sampled_from([0.0, 0.0, 0.005, 1.0, 10.0]),
        "writes_at_once": st.booleans(),
        "refuses": st.sampled_from([None, None, OSError("no room")]),
        "broken": st.sampled_from([None, None, OSError("unreadable")]),
    }
)
WEATHER = st.builds(Weather, st.sampled_from([0.0, 0.05, 0.5, 3.0]), PUBSUB, SPOOL)
STEPS = st.lists(st.one_of(WEATHER, st.integers(1, 5)), max_size=25)
GOOD: dict[str, dict[str, Any]] = {
    "pubsub": {"takes_s": 0.01, "fails": None, "stores_failed": False},
    "spool": {"takes_s": 0.0, "refuses": None, "broken": None},
}


def change(running: Delivery, pubsub: dict[str, Any], spool: dict[str, Any]) -> None:
    for thing, values in ((running.pubsub, pubsub), (running.spool, spool)):
        for name, value in values.items():
            setattr(thing, name, value)


def everywhere(running: Delivery) -> set[str]:
    return {*running.pubsub.stored, *running.spool.names(), *(name for name, _ in running.aside)}


async def send(running: Delivery, name: str, ends: dict[str, str]) -> None:
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    (ends[name],) = await running.send(name, body_bytes=200)
    assert loop.time() - started_s <= 1.0 + 2.0 + 0.3, "deadline and the wait for the disk, and some retry"
    if ends[name] in ("published", "spooled"):
        assert name in everywhere(running)
    if ends[name] == "published":
        assert name in running.pubsub.stored


async def live_through(running: Delivery, steps: list[Weather | int]) -> dict[str, str]:
    ends: dict[str, str] = {}
    sending: list[asyncio.Task[None]] = []
    for step in steps:
        if isinstance(step, Weather):
            change(running, step.pubsub, step.spool)
            await asyncio.sleep(step.lasts_s)
        else:
            names = [f"request{len(sending) + number}" for number in range(step)]
            sending += [asyncio.create_task(send(running, name, ends)) for name in names]
    await asyncio.gather(*sending)
    return ends


def check_counts(deliverer: Deliverer, ends: dict[str, str]) -> None:
    counted = Counter(published=deliverer.counts.published, spooled=deliverer.counts.spooled)
    counted.update({reason.value: count for reason, count in deliverer.counts.undelivered.items()})
    assert +counted == Counter(ends.values())


@given(STEPS)
@settings(deadline=None, max_examples=200)
def test_what_was_delivered_is_in_pubsub_once_the_weather_is_good(steps) -> None:
    async def main() -> None:
        pubsub = MemoryPubSub(unfit=BAD)
        async with delivery(pubsub, in_flight=2, waiting_bytes=20_000, spool_wait_s=2.0) as running:
            ends = await live_through(running, steps)
            change(running, **GOOD)
            await asyncio.sleep(100)
            await send(running, "last", ends)
            await asyncio.sleep(20)  # unfit messages wait until something was taken
            delivered = {name for name, end in ends.items() if end in ("published", "spooled")}
            assert delivered - BAD <= set(pubsub.stored)
            assert delivered & BAD <= {name for name, _ in running.aside}
            assert set(pubsub.stored) | {name for name, _ in running.aside} <= ends.keys()
            assert (ends["last"], running.spool.names()) == ("published", [])
            assert running.deliverer.state()[:2] == (None, "")
            assert running.deliverer.state()[3:] == (0, 0, 0)
            check_counts(running.deliverer, ends)

    run_virtually(main())


@given(STEPS, st.sampled_from([0.0, 0.5, 3.0, 10.0]))
@settings(deadline=None, max_examples=200)
def test_a_drain_ends_in_time_and_leaves_everything_in_pubsub_or_in_the_spool(steps, deadline_s) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with delivery(MemoryPubSub(unfit=BAD), spool_wait_s=2.0) as running:
            living = asyncio.create_task(live_through(running, steps))
            await asyncio.sleep(2.0)
            started_s = loop.time()
            left = await running.deliverer.drain(deadline_s)
            assert loop.time() - started_s <= deadline_s + 0.01
            assert left.messages == len(running.spool.names())
            stored = len(running.pubsub.stored)
            ends = await living
            delivered = {name for name, end in ends.items() if end in ("published", "spooled")}
            assert delivered <= everywhere(running)
            check_counts(running.deliverer, ends)
            await asyncio.sleep(100)
            assert len(running.pubsub.stored) == stored, "nothing is under way after a drain"

    run_virtually(main())


def test_memory_spool_and_weather_are_as_the_model_thinks() -> None:
    async def main() -> None:
        async with delivery(spool=MemorySpool()) as running:
            change(running, {"fails": Failure.PASSING}, {})
            assert await running.send("a") == ["spooled"]
            assert everywhere(running) == {"a"}

    run_virtually(main())

"""The notes of what was accepted: each message that became durable, whatever way it took."""

import asyncio
import os
import time
from pathlib import Path

from millrace.collector.accepted import KEEP_S, Accepted, key_of
from millrace.collector.deliver import Deliverer
from millrace.collector.delivery import DeliverySettings
from millrace.collector.message import Message
from millrace.collector.publish import Failure
from tests.support.delivering import MemoryPubSub, MemorySpool
from tests.support.virtual_time import run_virtually

HOUR = "1970-01-01T00"


def message(name: str, events: int = 1) -> Message:
    return Message(
        name.encode(),
        {"request_id": name, "source_id": "web", "received_at": "2026-03-01T12:00:00.000001Z"},
        events,
    )


def notes(folder: Path) -> list[str]:
    return [line for path in sorted(folder.glob("*.log")) for line in path.read_text().splitlines()]


def test_what_is_published_spooled_and_replayed_is_noted_and_what_is_turned_away_is_not(tmp_path: Path) -> None:
    pubsub, spool = MemoryPubSub(), MemorySpool()
    accepted = Accepted(tmp_path, clock=lambda: 60.5)
    one, two, three, four = message("one", 20), message("two", 3), message("three"), message("four")

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        deliverer = Deliverer(
            pubsub, spool, DeliverySettings(), set_aside=lambda *_: None, accepted=accepted, clock=clock
        )
        deliverer.start()
        await deliverer.deliver([one, two])
        pubsub.fails = Failure.PASSING
        await deliverer.deliver([three])
        spool.refuses = OSError("full")
        await asyncio.gather(deliverer.deliver([four]), return_exceptions=True)
        await accepted.flush()
        assert notes(tmp_path) == [
            "p 60 web 1-0*20,1-1*3 - - .",
            f"s 60 web *1 {key_of(three)} 2026-03-01T12:00:00.000001Z .",
        ]
        pubsub.fails = None
        while spool.held:
            # It is noted before the spool forgets it: whoever is killed in between leaves it to be sent again.
            await asyncio.sleep(0.1)
        replayed = f"{len(pubsub.requests)}-0"
        assert notes(tmp_path)[2:] == [f"r 60 web {replayed}*1 {key_of(three)} 2026-03-01T12:00:00.000001Z ."]
        await deliverer.drain(5.0)

    run_virtually(main())


def test_sources_have_lines_of_their_own_and_workers_files_of_their_own(tmp_path: Path) -> None:
    async def main() -> None:
        for _ in range(2):
            accepted = Accepted(tmp_path, clock=lambda: 60.0)
            other = message("b")._replace(attributes={"source_id": "app"})
            accepted.published([message("a"), other, message("c", 2)], ["1", "2", "3"])
            await accepted.flush()

    asyncio.run(main())
    assert notes(tmp_path) == ["p 60 web 1*1,3*2 - - .", "p 60 app 2*1 - - ."] * 2
    assert len({path.name for path in tmp_path.glob(f"accepted-{HOUR}-*.log")}) == 2


def test_a_disk_that_refuses_costs_the_notes_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "notes"

    async def main() -> None:
        accepted = Accepted(folder, clock=lambda: 60.0)
        folder.rmdir()
        accepted.published([message("a"), message("b")], ["1", "2"])
        await accepted.flush()
        assert accepted.lost == 2
        folder.mkdir()
        accepted.published([message("c")], ["3"])
        await accepted.flush()
        assert accepted.lost == 2

    asyncio.run(main())
    assert [line for line in notes(folder) if line] == ["p 60 web 3*1 - - ."]


def test_old_files_are_deleted(tmp_path: Path) -> None:
    now_s = time.time()
    ages = {
        "accepted-2020-01-01T00-aa.log": KEEP_S + 60,
        "accepted-2020-01-02T00-aa.log": KEEP_S - 60,
        "other.log": 1e8,
    }
    for name, age_s in ages.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (now_s - age_s,) * 2)

    async def main() -> None:
        accepted = Accepted(tmp_path)
        accepted.published([message("a")], ["1"])
        await accepted.flush()

    asyncio.run(main())
    left = {path.name for path in tmp_path.iterdir()}
    assert left & set(ages) == {"accepted-2020-01-02T00-aa.log", "other.log"}
    assert len(left) == 3

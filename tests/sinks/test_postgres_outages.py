"""The sink postgres while its server is stopped, killed or busy: each event is in the table once."""

# ruff: noqa: S608  the tables' names are the tests' own

import asyncio
import contextlib
import itertools
import os
import random
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from millrace.sinks import postgres_errors, postgres_table
from millrace.sinks.postgres import Postgres
from millrace.sinks.sink import DELIVERED, Delivery, Retry, SinkDownError
from tests.support.deliveries import Remembered, archived, delivery
from tests.support.postgres import PostgresServer

_numbers = itertools.count()
COLUMNS = ("message_id", "event", "user_key")


@pytest.fixture
def table() -> str:
    return f"outage{next(_numbers)}"


def _delivery(first: int, count: int) -> Delivery:
    rows = [archived(f"m{n:06}", event=f"e{n}") for n in range(first, first + count)]
    return delivery(rows, columns=COLUMNS)


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(90):
        while not await condition():
            await asyncio.sleep(0.01)


async def _is_blocked(watcher: asyncpg.Connection, name: str = "millrace") -> bool:
    """Say whether a delivery waits for a lock: it is in the middle of its transaction."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock'"
    return bool(await watcher.fetchval(waiting, name))


async def _ids(sink: Postgres) -> list[str]:
    watcher = await asyncpg.connect(sink.dsn)
    try:
        return [row[0] for row in await watcher.fetch(f"SELECT message_id FROM {sink.table} ORDER BY 1")]
    finally:
        await watcher.close()


async def _deliver_at_last(sink: Postgres, each: Delivery, again: list[str]) -> None:
    """Deliver as a lane does: open again after the destination was down, and offer the same again."""
    memory = Remembered()
    async with asyncio.timeout(120):
        while True:
            try:
                outcomes = await sink.deliver(each)
                if all(outcome == DELIVERED for outcome in outcomes):
                    return
                assert all(isinstance(outcome, Retry) for outcome in outcomes)
            except SinkDownError as down:
                again.append(down.detail)
                await asyncio.sleep(0.01)
                with contextlib.suppress(SinkDownError):
                    await sink.open(memory)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_server_that_goes_in_the_middle_of_a_delivery_has_none_of_it_and_after_the_resend_all(
    postgres_server: PostgresServer, table, how
):
    sink = Postgres(postgres_server.dsn, table=table)

    async def main() -> Any:
        await sink.open(Remembered())
        await sink.deliver(_delivery(0, 10))
        watcher = await asyncpg.connect(sink.dsn)
        await watcher.execute(f"BEGIN; LOCK TABLE {table}")
        under_way = asyncio.create_task(sink.deliver(_delivery(5, 20)))
        asker = await asyncpg.connect(sink.dsn)
        await _until(lambda: _is_blocked(asker))
        await asyncio.to_thread(getattr(postgres_server, how))
        try:
            with pytest.raises(SinkDownError):
                await under_way
            with pytest.raises(SinkDownError, match="no connection to PostgreSQL"):
                await sink.open(Remembered())
        finally:
            for each in (watcher, asker):
                each.terminate()
            await asyncio.to_thread(postgres_server.start)
        await sink.open(Remembered())
        before = await _ids(sink)
        assert await sink.deliver(_delivery(5, 20)) == [DELIVERED] * 20
        found = await _ids(sink)
        await sink.close()
        return before, found

    before, found = asyncio.run(main())
    assert before == [f"m{n:06}" for n in range(10)]
    assert found == [f"m{n:06}" for n in range(25)]


@pytest.mark.slow
def test_a_run_with_stops_and_kills_at_any_moment_leaves_each_event_once(postgres_server: PostgresServer, table):
    sink = Postgres(postgres_server.dsn, table=table)
    chance = random.Random(7)  # noqa: S311  not for secrets
    again: list[str] = []
    done = threading.Event()

    def hurt() -> None:
        for how in ("kill", "stop", "kill", "kill"):
            done.wait(chance.uniform(0.2, 0.5))
            getattr(postgres_server, how)()
            postgres_server.start()
        done.set()

    async def main() -> Any:
        await sink.open(Remembered())
        hurting = asyncio.create_task(asyncio.to_thread(hurt))
        numbers = itertools.count(0, 50)
        last = 0
        while not done.is_set():
            last = next(numbers)
            group = [_delivery(last, 30), _delivery(last + 30, 20)]
            await asyncio.gather(*(_deliver_at_last(sink, each, again) for each in group))
        await hurting
        await _deliver_at_last(sink, _delivery(last + 50, 1), again)  # opens it again where it has to be
        found = await _ids(sink)
        await sink.close()
        return last + 51, found

    count, found = asyncio.run(main())
    assert found == [f"m{n:06}" for n in range(count)]
    assert len(again) >= 4


def test_deliveries_that_race_with_the_same_events_leave_each_once(postgres_server: PostgresServer, table):
    """In opposite orders they may block each other for good: PostgreSQL ends one, which goes again."""
    sink = Postgres(f"{postgres_server.dsn}?deadlock_timeout=10", table=table)

    async def main() -> Any:
        await sink.open(Remembered())
        again: list[str] = []
        for start in range(0, 2_000, 200):
            forth = _delivery(start, 200)
            order = [199 - n for n in range(200)]
            back = delivery(forth.rows.take(order))
            half = _delivery(start + 100, 200)
            await asyncio.gather(*(_deliver_at_last(sink, each, again) for each in (forth, back, half, forth)))
        found = await _ids(sink)
        await sink.close()
        return again, found

    again, found = asyncio.run(main())
    assert found == [f"m{n:06}" for n in range(2_100)]
    assert again == []


def test_a_deadlock_is_no_events_fault(postgres_server: PostgresServer, table):
    """The sink has the first row and waits for the gate's; then it wants the last, whose owner wants the first."""
    sink = Postgres(f"{postgres_server.dsn}?deadlock_timeout=10", table=table)
    log = postgres_server.folder / "log"
    write = f"UPDATE {table} SET event = 'x' WHERE message_id = $1"

    async def main() -> Any:
        await sink.open(Remembered())
        await sink.deliver(_delivery(0, 3))
        gate, owner, asker = [
            await asyncpg.connect(f"{postgres_server.dsn}?deadlock_timeout=60000&application_name=other")
            for _ in range(3)
        ]
        begun = [gate.transaction(), owner.transaction()]
        for each in begun:
            await each.start()
        await gate.execute(write, "m000001")
        await owner.execute(write, "m000002")
        changed = delivery([archived(f"m00000{n}", event="y") for n in range(3)], columns=COLUMNS)
        under_way = asyncio.create_task(sink.deliver(changed))
        await _until(lambda: _is_blocked(asker))
        wanting = asyncio.create_task(owner.execute(write, "m000000"))
        await _until(lambda: _is_blocked(asker, "other"))
        before = log.read_text().count("deadlock detected")
        await begun[0].commit()
        await wanting
        deadlocks = log.read_text().count("deadlock detected") - before
        await begun[1].commit()
        outcomes = await under_way
        events = [row[0] for row in await asker.fetch(f"SELECT event FROM {table} ORDER BY message_id")]
        for each in (gate, owner, asker, sink):
            await each.close()
        return deadlocks, outcomes, events

    assert asyncio.run(main()) == (1, [DELIVERED] * 3, ["y"] * 3)


def test_a_delivery_that_is_cancelled_leaves_nothing_behind_and_the_next_goes_on(postgres_server, table):
    sink = Postgres(postgres_server.dsn, table=table)

    async def main() -> Any:
        await sink.open(Remembered())
        await sink.deliver(_delivery(0, 1))
        watcher = await asyncpg.connect(sink.dsn)
        await watcher.execute(f"BEGIN; LOCK TABLE {table}")
        under_way = asyncio.create_task(sink.deliver(_delivery(1, 5)))
        await _until(lambda: _is_blocked(watcher))
        under_way.cancel()
        with pytest.raises(asyncio.CancelledError):
            await under_way
        await watcher.execute("COMMIT")
        before = await _ids(sink)
        outcomes = await sink.deliver(_delivery(1, 1))
        found = await _ids(sink)
        await watcher.close()
        await sink.close()
        return before, outcomes, found

    assert asyncio.run(main()) == (["m000000"], [DELIVERED], ["m000000", "m000001"])


def test_a_delivery_to_a_server_that_stands_still_ends_when_it_is_cancelled(postgres_server, table):
    sink = Postgres(postgres_server.dsn, table=table)
    backend = "SELECT pid FROM pg_stat_activity WHERE application_name = 'millrace'"

    async def main() -> Any:
        await sink.open(Remembered())
        await sink.deliver(_delivery(0, 1))
        watcher = await asyncpg.connect(sink.dsn)
        for again, each in enumerate((_delivery(1, 5), delivery([archived("wide")]))):  # known, and to be planned
            pid = await watcher.fetchval(backend)
            os.kill(pid, signal.SIGSTOP)
            try:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await sink.deliver(each)
            finally:
                os.kill(pid, signal.SIGCONT)
            assert await sink.deliver(each) == [DELIVERED] * len(each), again
        found = await _ids(sink)
        await watcher.close()
        await sink.close()
        return found

    async def bounded() -> Any:
        async with asyncio.timeout(90):
            return await main()

    assert asyncio.run(bounded()) == [*(f"m{n:06}" for n in range(6)), "wide"]


def test_a_table_in_use_gets_its_new_columns_later_and_no_event_is_blamed(postgres_server, table, monkeypatch):
    monkeypatch.setattr(postgres_table, "_LOCK_WAIT", "50ms")
    sink = Postgres(postgres_server.dsn, table=table)
    wide = delivery([archived("wide")])

    async def main() -> Any:
        await sink.open(Remembered())
        await sink.deliver(_delivery(0, 1))
        reader = await asyncpg.connect(sink.dsn)
        async with reader.transaction():
            await reader.fetch(f"SELECT * FROM {table}")
            with pytest.raises(SinkDownError, match="is to get new columns, and was in use by others for all of 50ms"):
                await sink.deliver(wide)
        outcomes = await sink.deliver(wide)
        await reader.close()
        await sink.close()
        return outcomes

    assert asyncio.run(main()) == [DELIVERED]


def test_lanes_that_make_the_same_table_at_once_share_it(postgres_server: PostgresServer, table):
    sinks = [Postgres(postgres_server.dsn, table=f"{table}s.events") for _ in range(8)]
    wide = [delivery([archived(f"w{n}")], columns=COLUMNS[: 1 + n % 3]) for n in range(8)]

    async def main() -> Any:
        await asyncio.gather(*(sink.open(Remembered()) for sink in sinks))
        found = await asyncio.gather(*(sink.deliver(each) for sink, each in zip(sinks, wide, strict=True)))
        ids = await _ids(sinks[0])
        for sink in sinks:
            await sink.close()
        return found, ids

    found, ids = asyncio.run(main())
    assert found == [[DELIVERED]] * 8
    assert ids == [f"w{n}" for n in range(8)]


def test_too_many_connections_are_the_destinations_trouble(postgres_server: PostgresServer, table):
    async def main() -> Any:
        watcher = await asyncpg.connect(postgres_server.dsn)
        await watcher.execute(f"CREATE ROLE {table} LOGIN CONNECTION LIMIT 1")
        sink = Postgres(postgres_server.dsn.replace("millrace@", f"{table}@"))
        await sink.open(Remembered())
        try:
            second = Postgres(sink.dsn)
            with pytest.raises(SinkDownError, match=r"too many connections .*\(53300\)"):
                await second.open(Remembered())
        finally:
            await sink.close()
            await watcher.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("08006", "down"),
        ("25006", "down"),
        ("53100", "down"),
        ("53200", "down"),
        ("53300", "down"),
        ("57P01", "down"),
        ("57P02", "down"),
        ("57P03", "down"),
        ("58030", "down"),
        ("XX001", "down"),
        ("28P01", "down"),
        ("42501", "stale, down"),
        ("42P01", "stale, down"),
        ("42703", "stale, down"),
        ("40001", "again"),
        ("40P01", "again"),
        ("55P03", "again"),
        ("57014", "again"),
        ("22021", "rows"),
        ("23505", "rows"),
        ("54000", "rows"),
        ("P0001", "rows"),
        ("XX000", ""),
    ],
)
def test_each_error_of_the_server_has_one_meaning(state, kind):
    error = asyncpg.PostgresError.new({"C": state, "M": "as it says"})
    said = {
        "rows": postgres_errors.blames_rows(error),
        "again": postgres_errors.may_pass(error),
        "stale": postgres_errors.is_stale(error),
        "down": postgres_errors.down(error) is not None,
    }
    assert ", ".join(name for name, is_so in said.items() if is_so) == kind

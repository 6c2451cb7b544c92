"""The sink postgres with a real server: what gets into the table, and what does not."""

# ruff: noqa: S106, S608  passwords are references; the tables' names are the tests' own

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import asyncpg
import pyarrow as pa
import pytest

from millrace.sinks.json_rows import JSON
from millrace.sinks.postgres import Postgres
from millrace.sinks.sink import DELIVERED, CannotOpenSinkError, Delivery, Fault, Outcome, Rejected, Retry, SinkDownError
from tests.support.deliveries import Remembered, archive_rows, archived, delivery
from tests.support.postgres import PostgresServer

_numbers = itertools.count()


@pytest.fixture
def table() -> str:
    """A name that no other test has."""
    return f"t{next(_numbers)}"


@contextlib.asynccontextmanager
async def _opened(sink: Postgres) -> AsyncIterator[tuple[Postgres, asyncpg.Connection]]:
    await sink.open(Remembered())
    watcher = await asyncpg.connect(sink.dsn)
    try:
        yield sink, watcher
    finally:
        await watcher.close()
        await sink.close()


def _run(sink: Postgres, body: Callable[[Postgres, asyncpg.Connection], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with _opened(sink) as (opened, watcher):
            return await body(opened, watcher)

    return asyncio.run(main())


async def _all(watcher: asyncpg.Connection, query: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await watcher.fetch(query)]


def _reasons(outcomes: Sequence[Outcome]) -> list[str]:
    return [outcome.detail if isinstance(outcome, Rejected) else "" for outcome in outcomes]


def test_a_table_is_made_from_the_archives_columns_and_holds_each_event(postgres_server, table):
    rows = [archived("m1", properties='{"total": 12.50}', event="Order"), archived("m2", 1.5, is_late=True, user="bo")]

    async def body(sink, watcher):
        assert await sink.deliver(delivery(rows)) == [DELIVERED] * 2
        types = await _all(
            watcher,
            "SELECT column_name, data_type FROM information_schema.columns "
            f"WHERE table_name = '{table}' AND data_type <> 'text' ORDER BY ordinal_position",
        )
        found = await _all(
            watcher,
            "SELECT message_id, event, user_key, properties->>'total', context_ip, is_late, order_index, "
            f"to_char(occurred_at, 'HH24:MI:SS.US'), date::text FROM {table} ORDER BY message_id",
        )
        return types, found

    types, found = _run(Postgres(postgres_server.dsn, table=table), body)
    times = ("original_timestamp", "sent_at", "received_at", "published_at", "occurred_at", "released_at")
    assert types == [
        *((name, "timestamp with time zone") for name in times),
        ("is_late", "boolean"),
        ("late_by_ms", "bigint"),
        ("order_index", "bigint"),
        *((name, "jsonb") for name in ("properties", "traits", "context_rest", "rest")),
        ("envelope_index", "integer"),
        ("date", "date"),
    ]
    assert found == [
        ("m1", "Order", "ann", "12.50", None, False, 1_795_608_000_000_000 << 11, "12:00:00.000000", "2026-11-25"),
        ("m2", None, "bo", None, None, True, 1_795_608_001_500_000 << 11, "12:00:01.500000", "2026-11-25"),
    ]


def test_a_resend_writes_nothing_a_change_is_written_and_keep_leaves_the_first(postgres_server, table):
    first = delivery([archived("m1", event="A", properties="{}"), archived("m2", event="A")])
    changed = delivery([archived("m1", event="B", properties="{}"), archived("m2", event="A")])
    versions = f"SELECT message_id, event, xmin::text FROM {table} ORDER BY message_id"

    async def body(sink, watcher):
        found = []
        for each in (first, first, changed):
            assert await sink.deliver(each) == [DELIVERED] * 2
            found.append(await _all(watcher, versions))
        return found

    made, resent, after = _run(Postgres(postgres_server.dsn, table=table), body)
    assert [row[:2] for row in made] == [("m1", "A"), ("m2", "A")]
    assert resent == made  # the rows themselves, not written anew
    assert [row[:2] for row in after] == [("m1", "B"), ("m2", "A")]
    assert after[1] == made[1]
    kept, _, still = _run(Postgres(postgres_server.dsn, table=f"{table}k", on_conflict="keep"), _kept(first, changed))
    assert [row[1] for row in still] == [row[1] for row in kept] == ["A", "A"]


def _kept(first: Delivery, changed: Delivery) -> Callable[[Postgres, asyncpg.Connection], Awaitable[Any]]:
    async def body(sink: Postgres, watcher: asyncpg.Connection) -> Any:
        found = []
        for each in (first, changed, changed):
            await sink.deliver(each)
            found.append(await _all(watcher, f"SELECT message_id, event FROM {sink.table} ORDER BY message_id"))
        return found

    return body


def test_new_columns_of_the_rows_become_columns_of_the_table(postgres_server, table):
    score = pa.field("score", pa.float64())
    price = pa.field("price", pa.decimal128(9, 2))
    seen = pa.field("seen", pa.string(), metadata=JSON)
    wide = archive_rows(
        [{**archived("m2"), "score": 0.5, "price": 3, "seen": "[1]"}], ("message_id", "event"), (score, price, seen)
    )

    async def body(sink, watcher):
        await sink.deliver(delivery([archived("m1", event="A")], columns=("message_id", "event")))
        await sink.deliver(delivery(wide))
        await sink.deliver(delivery([archived("m3")], columns=("message_id",)))
        return await _all(watcher, f"SELECT *, pg_typeof(price)::text, pg_typeof(seen)::text FROM {table} ORDER BY 1")

    found = _run(Postgres(postgres_server.dsn, table=table), body)
    assert [(*row[:3], row[3] and float(row[3]), *row[4:]) for row in found] == [
        ("m1", "A", None, None, None, "numeric", "jsonb"),
        ("m2", None, 0.5, 3.0, "[1]", "numeric", "jsonb"),
        ("m3", None, None, None, None, "numeric", "jsonb"),
    ]


def test_a_table_of_ones_own_is_used_as_it_is(postgres_server, table):
    """Narrower columns take what fits them; JSON goes into json and text as it came."""
    columns = ("message_id", "event", "user_key", "late_by_ms", "properties", "traits", "occurred_at")
    rows = [
        archived("m1", event="short", late_by_ms=5, properties='{"b": 1, "a": 2}', traits='{"z":  1}'),
        archived("m2", event="much longer than ten", properties="{}"),
        archived("m3", late_by_ms=2**31),
        archived("m4", event="x"),
    ]

    async def body(sink, watcher):
        await watcher.execute(
            f"CREATE TABLE {table} (id bigserial, message_id varchar(20) UNIQUE, event varchar(10), user_key text, "
            "late_by_ms integer, properties json, traits text, occurred_at timestamp, own text DEFAULT 'mine')"
        )
        outcomes = await sink.deliver(delivery(rows, columns=columns))
        again = await sink.deliver(delivery(rows, columns=columns))
        found = await _all(
            watcher, f"SELECT message_id, event, late_by_ms, properties, traits, own FROM {table} ORDER BY id"
        )
        return outcomes, again, found

    outcomes, again, found = _run(Postgres(postgres_server.dsn, table=table, create=False), body)
    assert outcomes == again
    assert _reasons(outcomes) == [
        "",
        "PostgreSQL refuses the row (22001): a text is longer than the column",
        "PostgreSQL refuses the row (22003): a number is out of the column's range",
        "",
    ]
    assert found == [
        ("m1", "short", 5, '{"b": 1, "a": 2}', '{"z":  1}', "mine"),
        ("m4", "x", 0, None, None, "mine"),
    ]


@pytest.mark.parametrize(
    ("made", "sink", "message"),
    [
        (
            "",
            {"create": False},
            "there is no table TABLE: make it, with the columns message_id text, late_by_ms bigint",
        ),
        (
            "CREATE TABLE TABLE (message_id text PRIMARY KEY)",
            {"create": False},
            "the table TABLE lacks columns: add late_by_ms bigint, or leave them out of the route",
        ),
        (
            "CREATE TABLE TABLE (message_id text PRIMARY KEY, late_by_ms date)",
            {},
            "the table TABLE: column late_by_ms is date, the rows have bigint; change the column's type, or give",
        ),
        (
            "CREATE TABLE TABLE (late_by_ms bigint)",
            {},
            "the table TABLE has no column message_id: add it with a unique index, or set key to its name",
        ),
        (
            "CREATE TABLE TABLE (message_id text, late_by_ms bigint)",
            {},
            "PostgreSQL (table TABLE): the key has no unique index of its own, by which a row is known again: make one",
        ),
        (
            "CREATE TABLE TABLE (x int)",
            {"key": "late_by_ms"},
            "the column late_by_ms of the rows is not the message id",
        ),
    ],
)
def test_a_table_that_does_not_fit_is_told_and_no_event_is_blamed(postgres_server, table, made, sink, message):
    async def body(sink, watcher):
        if made:
            await watcher.execute(made.replace("TABLE (", f"{table} (").replace("TABLE TABLE", f"TABLE {table}"))
        with pytest.raises(SinkDownError) as down:
            await sink.deliver(delivery([archived("m1")], columns=("message_id", "late_by_ms")))
        return down.value.detail

    detail = _run(Postgres(postgres_server.dsn, table=table, **sink), body)
    assert detail.startswith(message.replace("TABLE", table))


def test_a_table_that_is_dropped_or_altered_under_way_is_looked_at_again(postgres_server, table):
    async def body(sink, watcher):
        each = delivery([archived("m1", event="A")], columns=("message_id", "event"))
        found = []
        for change in ("SELECT 1", f"DROP TABLE {table}", f"ALTER TABLE {table} DROP COLUMN event"):
            await watcher.execute(change)
            assert await sink.deliver(each) == [DELIVERED]
            found += await _all(watcher, f"SELECT message_id, event FROM {table}")
        return found

    assert _run(Postgres(postgres_server.dsn, table=table), body) == [("m1", "A")] * 3


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "nul": ({"event": "a\0b"}, "(22021, column event): a text holds a character that PostgreSQL cannot keep"),
    "nul in JSON": ({"properties": '{"a": "\\u0000"}'}, "(22P05, column properties): JSON holds \\u0000"),
    "half a pair": ({"properties": '{"a": "\\ud800"}'}, "(22P02, column properties): a value, or JSON such as half"),
    "no JSON": ({"traits": "{secret"}, "(22P02, column traits): a value, or JSON"),
    "deep JSON": ({"rest": "[" * 50_000 + "]" * 50_000}, "(54001, column rest): JSON is nested too deeply"),
    "beyond numeric": ({"rest": '{"n": 1e200000}'}, "(22003, column rest): a number is out of the column's range"),
    "before all time": ({"sent_at": -(2**63)}, "(22008, column sent_at): a time is out of range"),
    "a long id": ({}, "(54000): a value is too large"),
}


def test_each_hostile_row_is_refused_with_its_reason_and_the_rest_goes_on_in_order(postgres_server, table):
    fine = [
        archived("f0", event='"; DROP TABLE users; --', properties='{"n": 123456789012345678901234567890.5}'),
        archived("f1", event="x" * 1_000_000, traits='{"text": "' + "é" * 500_000 + '"}'),
        archived("f2", event="\\N", properties='{"nested": ' + "[" * 500 + "]" * 500 + "}"),
        archived("f3", event="\u202e\ufffe\U0001f600"),
        archived("f4", event="\\.\n\\.\n"),
    ]
    rows = []
    for number, (name, (values, _)) in enumerate(HOSTILE.items()):
        bad = archived(f"b{number}", **values)
        if name == "a long id":  # of characters that cannot be compressed into a page
            bad["message_id"] = "".join(map(chr, range(0x4E00, 0x4E00 + 6_000)))
        rows += [fine[number % len(fine)] | {"message_id": f"f{number}"}, bad]

    async def body(sink, watcher):
        await sink.deliver(delivery([archived("first")]))
        await watcher.execute(f"ALTER TABLE {table} ADD COLUMN place bigserial")
        outcomes = await sink.deliver(delivery(rows))
        found = await _all(
            watcher,
            f"SELECT message_id, event, properties->>'n' FROM {table} WHERE message_id <> 'first' ORDER BY place",
        )
        return outcomes, found

    outcomes, found = _run(Postgres(postgres_server.dsn, table=table), body)
    assert outcomes[::2] == [DELIVERED] * len(HOSTILE)
    for outcome, (name, (_, reason)) in zip(outcomes[1::2], HOSTILE.items(), strict=True):
        assert isinstance(outcome, Rejected), name
        assert outcome.fault is Fault.REJECTED
        assert reason in outcome.detail, name
        assert "secret" not in outcome.detail
    assert [row[:2] for row in found] == [(row["message_id"], row.get("event")) for row in rows[::2]]
    assert found[0][2] == "123456789012345678901234567890.5"


def test_a_delivery_of_nothing_but_bad_rows_is_refused_row_by_row(postgres_server, table):
    rows = [archived(f"m{n}", event="\0") for n in range(300)]

    async def body(sink, watcher):
        outcomes = await sink.deliver(delivery(rows, columns=("message_id", "event")))
        return outcomes, await watcher.fetchval(f"SELECT count(*) FROM {table}")

    outcomes, count = _run(Postgres(postgres_server.dsn, table=table), body)
    assert {type(outcome) for outcome in outcomes} == {Rejected}
    assert (len(outcomes), count) == (300, 0)


def test_constraints_and_triggers_of_the_table_refuse_single_rows_at_the_commit_too(postgres_server, table):
    async def body(sink, watcher):
        await watcher.execute(
            f"CREATE TABLE {table}_users (name text PRIMARY KEY); INSERT INTO {table}_users VALUES ('ann');"
            f"CREATE TABLE {table} (message_id text PRIMARY KEY, event text NOT NULL CHECK (event <> 'bad'), "
            f"user_key text REFERENCES {table}_users DEFERRABLE INITIALLY DEFERRED)"
        )
        rows = [
            archived("m0", event="good"),
            archived("m1", event="bad"),
            archived("m2"),
            archived("m3", event="good", user="stranger"),
            archived("m4", event="good"),
        ]
        outcomes = await sink.deliver(delivery(rows, columns=("message_id", "event", "user_key")))
        return _reasons(outcomes), await _all(watcher, f"SELECT message_id FROM {table} ORDER BY 1")

    reasons, found = _run(Postgres(postgres_server.dsn, table=table), body)
    assert found == [("m0",), ("m4",)]
    assert reasons == [
        "",
        f"PostgreSQL refuses the row (23514, constraint {table}_event_check): a check constraint of the table",
        "PostgreSQL refuses the row (23502, column event): the column may not be null",
        f"PostgreSQL refuses the row (23503, constraint {table}_user_key_fkey): a foreign key of the table",
        "",
    ]


def test_equal_ids_in_one_delivery_are_one_row_the_last(postgres_server, table):
    rows = [archived("m1", event="A"), archived("m2", event="B"), archived("m1", event="C"), archived("m3", event="\0")]
    rows.append(archived("m3", event="\0"))

    async def body(sink, watcher):
        outcomes = await sink.deliver(delivery(rows))
        return outcomes, await _all(watcher, f"SELECT message_id, event FROM {table} ORDER BY 1")

    outcomes, found = _run(Postgres(postgres_server.dsn, table=table), body)
    assert [type(outcome) is Rejected for outcome in outcomes] == [False, False, False, True, True]
    assert found == [("m1", "C"), ("m2", "B")]


def test_the_route_chooses_table_and_names_and_the_id_is_there_without_being_chosen(postgres_server, table):
    odd = pa.field('he said "x"; --', pa.int64())
    rows = archive_rows([{**archived("m1"), odd.name: 7}, {**archived("m2"), odd.name: None}], ("event",), (odd,))
    target = f'{table}s."Odd" name'

    async def body(sink, watcher):
        await sink.deliver(delivery(rows, ids=["m1", "m2"], target=target))
        name = f'{table}s."""Odd"" name"'
        return await _all(watcher, f'SELECT id, "he said ""x""; --" FROM {name} ORDER BY 1')

    assert _run(Postgres(postgres_server.dsn, table=table, key="id"), body) == [("m1", 7), ("m2", None)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dsn": "mysql://x"}, "dsn has to be postgresql://user@host/database"),
        ({"dsn": "postgresql://u:pw@h/d"}, "dsn may not hold a password"),
        ({"dsn": "postgresql://u@h/d?password=pw"}, "dsn may not hold a password"),
        ({"password": "hunter2"}, "password has to say where the secret is"),
        ({"table": "a.b.c"}, "the table 'a.b.c' has to be a name or schema.name"),
        ({"table": "x" * 64}, "each of 1 to 63 bytes"),
        ({"on_conflict": "merge"}, "on_conflict has to be update or keep, got 'merge'"),
        ({"tls": "on"}, "tls has to be one of disable, prefer, require, verify-full, got 'on'"),
        ({"ca": "/x"}, "ca is used by tls: verify-full only"),
    ],
)
def test_settings_that_are_wrong_are_told_without_a_server(settings, message):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as wrong:
        Postgres(**{"dsn": "postgresql://u@h/d", **settings})
    assert message in str(wrong.value)
    assert "pw" not in str(wrong.value)
    assert "hunter2" not in str(wrong.value)


def test_what_can_never_be_opened_is_told_apart_from_what_is_down(postgres_server, table, monkeypatch):
    port = postgres_server.port
    monkeypatch.setenv("GOOD", "se'cret")
    monkeypatch.setenv("BAD", "guess")
    monkeypatch.setenv("DSN", f"postgresql://app:se'cret@127.0.0.1:{port}/postgres")

    async def opens(sink: Postgres) -> str:
        try:
            await sink.open(Remembered())
            await sink.close()
        except (CannotOpenSinkError, SinkDownError) as error:
            return f"{type(error).__name__}: {error}"
        return "open"

    async def body(_, watcher):
        await watcher.execute("CREATE ROLE app LOGIN PASSWORD 'se''cret'")
        dsn = f"postgresql://app@127.0.0.1:{port}/postgres"
        return [
            await opens(Postgres(dsn, password="env:GOOD")),
            await opens(Postgres("env:DSN")),
            await opens(Postgres(dsn, password="env:BAD")),
            await opens(Postgres(dsn, password="env:NOT_THERE")),
            await opens(Postgres(postgres_server.dsn.replace("/postgres", "/nowhere"))),
            await opens(Postgres(postgres_server.dsn, tls="require")),
            await opens(Postgres("postgresql://u@127.0.0.1:1/d")),
            await opens(Postgres(postgres_server.dsn, tls="verify-full", ca="/no/such")),
        ]

    found = _run(Postgres(postgres_server.dsn, table=table), body)
    assert found[:2] == ["open", "open"]
    assert [each.split(" ")[0] for each in found[2:]] == [
        "CannotOpenSinkError:",
        "CannotOpenSinkError:",
        "CannotOpenSinkError:",
        "SinkDownError:",
        "SinkDownError:",
        "CannotOpenSinkError:",
    ]
    assert not any("guess" in each or "se'cret" in each for each in found)


def test_what_a_sink_that_was_open_cannot_reach_any_more_is_down(postgres_server, table):
    async def body(_, watcher):
        await watcher.execute(f"CREATE DATABASE {table}")
        sink = Postgres(postgres_server.dsn.replace("/postgres", f"/{table}"))
        await sink.open(Remembered())
        await sink.close()
        await watcher.execute(f"DROP DATABASE {table} WITH (FORCE)")
        with pytest.raises(SinkDownError, match=rf'database "{table}" does not exist \(3D000\)'):
            await sink.open(Remembered())

    _run(Postgres(postgres_server.dsn, table=table), body)


def test_a_transaction_that_may_pass_the_next_time_is_retried(postgres_server: PostgresServer, table):
    sink = Postgres(f"{postgres_server.dsn}?statement_timeout=1000", table=table)

    async def body(sink, watcher):
        assert await sink.deliver(delivery([archived("m1")])) == [DELIVERED]
        async with watcher.transaction():
            await watcher.execute(f"LOCK TABLE {table}")
            outcomes = await sink.deliver(delivery([archived("m1", event="x"), archived("m2")]))
        return outcomes, await sink.deliver(delivery([archived("m2")]))

    outcomes, after = _run(sink, body)
    told = "PostgreSQL ended the transaction: QueryCanceledError (57014)"
    assert outcomes == [Retry(Fault.TIMED_OUT, told)] * 2
    assert after == [DELIVERED]

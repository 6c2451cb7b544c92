"""The sink `bigquery` against bqemulator: a real server that is stopped, killed and started."""

import asyncio
import contextlib
import datetime as dt
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from google.api_core.exceptions import NotFound

from millrace.delivery.ledger import Ledger
from millrace.sinks.bigquery import BigQuery
from millrace.sinks.json_rows import JSON
from millrace.sinks.sink import DELIVERED, Delivery, Memory, SinkDownError
from millrace.testing import DictMemory, check_sink, deliveries_of, track
from millrace.testing.deliveries import delivery_of
from tests.sinks.child_deliveries import PART
from tests.support.bigquery import DATASET, PROJECT, RunningBigQuery, running_bigquery

pytestmark = pytest.mark.slow
NOON = dt.datetime(2026, 1, 5, 12, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBigQuery]:
    with running_bigquery(tmp_path_factory.mktemp("bigquery")) as running:
        yield running


@pytest.fixture
def table(request: pytest.FixtureRequest) -> str:
    """A table's name that no other test has."""
    return "".join(each if each.isalnum() else "_" for each in request.node.name)


@contextlib.asynccontextmanager
async def opened(server: RunningBigQuery, table: str, memory: Memory, **given: Any) -> AsyncIterator[BigQuery]:
    sink = BigQuery(table=server.table(table), **server.settings, **given)
    await sink.open(memory)
    try:
        yield sink
    finally:
        await sink.close()


def delivery(columns: dict[str, tuple[pa.Field | pa.DataType, Sequence[Any]]], target: str = "") -> Delivery:
    count = len(next(iter(columns.values()))[1])
    names = ["message_id", "user_key"]
    values: list[pa.Array] = [
        pa.array(columns.pop(name)[1] if name in columns else ["user"] * count, pa.string()) for name in names
    ]
    fields = [pa.field(name, pa.string()) for name in names]
    for name, (kind, given) in columns.items():
        fields.append(kind if isinstance(kind, pa.Field) else pa.field(name, kind))
        values.append(pa.array(given, fields[-1].type))
    return delivery_of(pa.RecordBatch.from_arrays(values, schema=pa.schema(fields)), target=target)


def ids(*given: str) -> dict[str, tuple[pa.DataType, Sequence[Any]]]:
    return {"message_id": (pa.string(), given)}


def test_it_keeps_what_every_sink_has_to(server: RunningBigQuery, table: str):
    def read() -> list[str]:
        name = server.table(table)
        return [row[0] for row in server.query(f"SELECT message_id FROM `{name}`")]  # noqa: S608

    report = check_sink(lambda: BigQuery(table=server.table(table), **server.settings), read=read)
    assert "redelivers" in report.checked
    print(f"\nbigquery: {report.events_per_s:,.0f} events/s, {report.cpu_us_per_event:.1f} us of CPU an event")


def test_a_table_is_made_of_the_rows_columns_and_holds_their_values(server: RunningBigQuery, table: str):
    given = delivery({
        "message_id": (pa.string(), ["a", "b"]),
        "received_at": (pa.timestamp("us", "UTC"), [NOON, NOON + dt.timedelta(microseconds=1)]),
        "properties": (pa.field("properties", pa.string(), metadata=JSON), ['{"total":3,"x":[null]}', None]),
        "at": (pa.timestamp("us"), [NOON.replace(tzinfo=None), None]),
        "day": (pa.date32(), [NOON.date(), None]),
        "count": (pa.int32(), [-1, None]),
        "total": (pa.float32(), [0.5, None]),
        "is_new": (pa.bool_(), [True, None]),
        "raw": (pa.binary(), [b"\x00\xff", None]),
        "kind": (pa.dictionary(pa.int8(), pa.string()), ["x", None]),
        "tags": (pa.list_(pa.string()), [["p", "q"], []]),
    })  # fmt: skip

    async def story() -> None:
        async with opened(server, table, DictMemory()) as sink:
            assert await sink.deliver(given) == [DELIVERED] * 2

    asyncio.run(story())
    rows = server.query(f"SELECT * FROM `{server.table(table)}` ORDER BY message_id")  # noqa: S608
    assert rows == [
        ("a", "user", NOON, {"total": 3, "x": [None]}, NOON.replace(tzinfo=None), NOON.date(), -1, 0.5, True,
         b"\x00\xff", "x", ["p", "q"]),
        ("b", "user", NOON + dt.timedelta(microseconds=1), *[None] * 8, []),
    ]  # fmt: skip
    with server.client() as client:
        made = client.get_table(server.table(table))
    assert [(column.name, column.field_type, column.mode) for column in made.schema] == [
        ("message_id", "STRING", "NULLABLE"),
        ("user_key", "STRING", "NULLABLE"),
        ("received_at", "TIMESTAMP", "NULLABLE"),
        ("properties", "JSON", "NULLABLE"),
        ("at", "DATETIME", "NULLABLE"),
        ("day", "DATE", "NULLABLE"),
        ("count", "INTEGER", "NULLABLE"),
        ("total", "FLOAT", "NULLABLE"),
        ("is_new", "BOOLEAN", "NULLABLE"),
        ("raw", "BYTES", "NULLABLE"),
        ("kind", "STRING", "NULLABLE"),
        ("tags", "STRING", "REPEATED"),
    ]
    assert (made.time_partitioning.field, made.time_partitioning.type_) == ("received_at", "DAY")


def test_new_columns_are_added_and_routes_to_one_table_need_not_have_the_same(server: RunningBigQuery, table: str):
    async def story() -> None:
        async with opened(server, table, DictMemory()) as sink:
            for given in (
                delivery({**ids("a"), "total": (pa.int64(), [1])}),
                delivery({**ids("b"), "tax": (pa.float64(), [0.5])}),
                delivery({**ids("c"), "TOTAL": (pa.int64(), [3])}),
                delivery(ids("d")),
            ):
                assert await sink.deliver(given) == [DELIVERED]

    asyncio.run(story())
    rows = server.query(f"SELECT message_id, total, tax FROM `{server.table(table)}` ORDER BY message_id")  # noqa: S608
    assert rows == [("a", 1, None), ("b", None, 0.5), ("c", 3, None), ("d", None, None)]


def test_the_target_of_a_route_names_another_table(server: RunningBigQuery, table: str):
    async def story() -> None:
        async with opened(server, table, DictMemory()) as sink:
            targets = [f"{table}_1", f"{DATASET}.{table}_2", f"{PROJECT}.{DATASET}.{table}_3"]
            for number, target in enumerate(targets):
                assert await sink.deliver(delivery(ids(f"m{number}"), target)) == [DELIVERED]
            with pytest.raises(SinkDownError, match="the target of route route: a table is named"):
                await sink.deliver(delivery(ids("x"), "no table"))

    asyncio.run(story())
    assert [server.ids(f"{table}_{number}") for number in (1, 2, 3)] == [["m0"], ["m1"], ["m2"]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"total": (pa.string(), ["3"])}, "column total is INTEGER in the table and STRING in the rows"),
        ({"total": (pa.list_(pa.int64()), [[3]])}, "column total is INTEGER in the table and INTEGER REPEATED"),
        ({"span": (pa.duration("us"), [3])}, r"column span is duration\[us\], which BigQuery has no type for"),
        ({"tax": (pa.int64(), [3]), "Tax": (pa.int64(), [3])}, "columns tax and Tax are one in BigQuery"),
    ],
)
def test_rows_that_do_not_fit_their_table_wait_and_say_why(
    server: RunningBigQuery, table: str, columns: dict[str, Any], message: str
):
    async def story() -> None:
        memory = DictMemory()
        async with opened(server, table, memory) as sink:
            assert await sink.deliver(delivery({**ids("a"), "total": (pa.int64(), [1])})) == [DELIVERED]
            with pytest.raises(SinkDownError, match=message):
                await sink.deliver(delivery({**ids("b"), **columns}))
        async with opened(server, table, memory) as sink:
            assert await sink.deliver(delivery(ids("b"))) == [DELIVERED]

    asyncio.run(story())
    assert server.ids(table) == ["a", "b"]


def test_a_table_that_is_not_there_is_said(server: RunningBigQuery, table: str):
    async def story() -> None:
        async with opened(server, table, DictMemory(), create=False) as sink:
            with pytest.raises(SinkDownError, match=r"there is no table .* create it, or set create: true"):
                await sink.deliver(delivery(ids("a")))

    asyncio.run(story())


def test_a_dataset_that_is_not_there_is_said(server: RunningBigQuery, table: str, monkeypatch: pytest.MonkeyPatch):
    """As Google says it; the emulator fails otherwise."""

    def not_found(*_: Any, **__: Any) -> None:
        raise NotFound("Not found: Dataset shop-test:events")  # type: ignore[no-untyped-call]

    monkeypatch.setattr("google.cloud.bigquery.Client.create_table", not_found)

    async def story() -> None:
        async with opened(server, table, DictMemory()) as sink:
            with pytest.raises(SinkDownError, match=r"there is no dataset for .*: create it"):
                await sink.deliver(delivery(ids("a")))

    asyncio.run(story())


def test_a_table_that_was_dropped_and_made_again_gets_its_events_again(server: RunningBigQuery, table: str):
    async def story() -> None:
        memory = DictMemory()
        for _ in range(2):
            async with opened(server, table, memory) as sink:
                assert await sink.deliver(delivery(ids("a"))) == [DELIVERED]
                assert await sink.deliver(delivery(ids("a"))) == [DELIVERED]
            assert server.ids(table) == ["a"]
            with server.client() as client:
                client.delete_table(server.table(table))

    asyncio.run(story())


def test_values_that_no_column_holds_reject_their_rows_only(server: RunningBigQuery, table: str):
    async def story() -> list[str]:
        async with opened(server, table, DictMemory()) as sink:
            given = delivery({**ids("a", "b", "c"), "large": (pa.uint64(), [1, 2**64 - 1, 3])})
            return [type(each).__name__ for each in await sink.deliver(given)]

    assert asyncio.run(story()) == ["Delivered", "Rejected", "Delivered"]
    assert server.ids(table) == ["a", "c"]


def test_the_emulator_treats_offsets_as_google_says(server: RunningBigQuery, table: str):
    """What the promise stands on; the answers that it cannot be made to give are in test_bigquery_answers.py."""

    async def story() -> None:
        from millrace.sinks.bigquery_stream import Kind, create_stream, finalize

        sink = BigQuery(table=server.table(table), **server.settings)
        await sink.open(DictMemory())
        await sink.deliver(delivery(ids("a")))
        client = sink._opened.client
        assert client is not None
        stream = await create_stream(client, server.table(table), 5.0)
        rows = pa.RecordBatch.from_pylist([{"message_id": "x"}, {"message_id": "y"}])
        assert (await stream.append(rows)).kind is Kind.LANDED
        assert (await stream.append(rows)).kind is Kind.THERE_ALREADY
        stream.offset = 5
        assert (await stream.append(rows)).kind is Kind.STREAM_GONE
        assert await finalize(client, stream.name, 5.0) == 2
        assert await finalize(client, stream.name, 5.0) == 2
        stream.offset = 2
        assert (await stream.append(rows)).kind is Kind.STREAM_GONE
        await stream.disconnect()
        assert await finalize(client, stream.name[:-16] + "0" * 16, 5.0) is None
        await sink.close()

    asyncio.run(story())
    assert server.ids(table) == ["a", "x", "y"]


def test_a_server_that_goes_away_and_comes_back_has_each_event_once(tmp_path: Path):
    """Its streams are gone after that, other than Google's: what is in is asked of the table."""
    events = [track("Order Completed", user=f"user-{n % 3}", at=n / 1_000, message_id=f"m{n:06}") for n in range(200)]
    ends = {2: "kill", 6: "stop"}
    with running_bigquery(tmp_path / "bigquery") as server:

        async def story() -> None:
            ledger = Ledger(tmp_path / "ledger.sqlite")
            sink = BigQuery(table=server.table("orders"), **server.settings, timeout_s=20.0)
            await sink.open(ledger)
            waiting = deliveries_of(events, max_events=PART)
            for number, each in enumerate(waiting):
                if number in ends:
                    task = asyncio.get_running_loop().create_task(sink.deliver(each))
                    await asyncio.sleep(0)  # under way
                    await asyncio.to_thread(getattr(server, ends[number]))
                    with contextlib.suppress(SinkDownError):
                        await task
                    with pytest.raises(SinkDownError):
                        await sink.open(ledger)
                    await asyncio.to_thread(server.start)
                    await sink.open(ledger)
                assert await sink.deliver(each) == [DELIVERED] * len(each)
            await sink.close()
            ledger.close()

        asyncio.run(story())
        assert server.ids("orders") == [each["messageId"] for each in events]


def _child(server: RunningBigQuery, folder: Path, table: str, count: int, where: str = "never") -> list[str]:
    return [sys.executable, "-m", "tests.sinks.bigquery_child", str(folder), server.table(table),
            server.endpoint, server.rest_endpoint, str(count), where, "2"]  # fmt: skip


@pytest.mark.parametrize("where", ["after_put", "after_append"])
def test_a_process_that_is_killed_around_an_append_leaves_each_event_once(
    server: RunningBigQuery, table: str, tmp_path: Path, where: str
):
    count = 4 * PART
    killed = subprocess.run(_child(server, tmp_path, table, count, where), check=False, timeout=120)
    assert killed.returncode == -9
    assert len(server.ids(table)) == {"after_put": PART, "after_append": 2 * PART}[where]
    subprocess.run(_child(server, tmp_path, table, count), check=True, timeout=120)
    assert server.ids(table) == [f"m{n:06}" for n in range(count)]
    order = server.query(f"SELECT message_id FROM `{server.table(table)}`")  # noqa: S608
    assert [row[0] for row in order] == [f"m{n:06}" for n in range(count)]


def test_processes_that_are_killed_at_any_moment_leave_each_event_once(
    server: RunningBigQuery, table: str, tmp_path: Path
):
    count = 30 * PART
    for until in (3, 14):
        child = subprocess.Popen(_child(server, tmp_path, table, count), stdout=subprocess.PIPE, text=True)
        with child:
            assert child.stdout is not None
            for line in child.stdout:
                if int(line) >= until:
                    child.kill()
                    break
    subprocess.run(_child(server, tmp_path, table, count), check=True, timeout=120)
    assert server.ids(table) == [f"m{n:06}" for n in range(count)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"table": "orders"}, "a table is named project.dataset.table, got 'orders'"),
        ({"table": "shop.events.`x`"}, "a table is named project.dataset.table"),
        ({"endpoint": "127.0.0.1:9060"}, "endpoint and rest_endpoint are given both, or none of them"),
        ({"partition_by": "a b"}, "partition_by must be the name of a column, got 'a b'"),
        ({"timeout_s": 0}, "timeout_s and max_events must be positive"),
    ],
)
def test_settings_that_cannot_work_are_said(given: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        BigQuery(**{"table": "shop-test.events.orders", **given})


def test_a_machine_without_credentials_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch):
    from google.auth.exceptions import DefaultCredentialsError

    from millrace.sinks.sink import CannotOpenSinkError

    def no_credentials(*_: Any, **__: Any) -> None:
        raise DefaultCredentialsError

    monkeypatch.setattr("millrace.sinks.bigquery.BigQueryWriteAsyncClient", no_credentials)
    with pytest.raises(CannotOpenSinkError, match="set GOOGLE_APPLICATION_CREDENTIALS"):
        asyncio.run(BigQuery(table="shop-test.events.orders").open(DictMemory()))

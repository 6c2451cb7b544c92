"""The writer of one table of BigQuery: deliveries that wait go together into one append, one append at a time.

One at a time, since a stream takes rows only at its end: with several under way, one that fails would fail those behind
it, and what had to be remembered before each would be more. What that would cost in time, deliveries regain by waiting
together: an append takes all that came while the last one was under way, up to 8 MB (the service asks for more than
1 MB). Measured against pipelining in docs/sinks/bigquery.md.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import Iterable, Sequence

import pyarrow as pa
import structlog
from google.cloud.bigquery_storage_v1.services.big_query_write import BigQueryWriteAsyncClient

from millrace.sinks.bigquery_memory import Intent, TableMemory
from millrace.sinks.bigquery_parts import APPEND_BYTES, Item, Part, appends, fitting
from millrace.sinks.bigquery_stream import Answer, Kind, Stream, create_stream, finalize
from millrace.sinks.bigquery_table import SchemaConflictError, Tables, arrow_field
from millrace.sinks.sink import DELIVERED, Fault, Memory, Outcome, Rejected, Retry, SinkDownError

_TRIES = 3
"""Of one append at one offset: where a connection ends without an answer, it is safe to send again."""
_ROUNDS = 3
"""New streams for one append, before the sink is down."""
_PAUSE_S = 0.2
_NEW_COLUMNS_S = 5.0
"""How long a new stream may go on not to know the columns that the table was given."""

_log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True)
class WriterSettings:
    """What a writer needs of the sink's settings; their meaning is in sinks/bigquery.py."""

    create: bool
    id_column: str
    partition_by: str
    timeout_s: float


class Writer:
    """Appends rows to one table. For one event loop."""

    def __init__(
        self, name: str, settings: WriterSettings, client: BigQueryWriteAsyncClient, tables: Tables, memory: Memory
    ) -> None:
        self._name, self._settings, self._client, self._tables = name, settings, client, tables
        self._all_memory = memory
        self._memory: TableMemory | None = None
        self._stream: Stream | None = None
        self._schema = pa.schema([])  # of the appends: all columns that deliveries had so far
        self._in_step: set[bytes] = set()  # schemas of deliveries that the table has the columns of
        self._has_landed = False
        self._queue: asyncio.Queue[Item] = asyncio.Queue()
        self._down: SinkDownError | None = None
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def recover(self) -> None:
        """Find out about the append that was under way when the last process ended.

        Raises:
            SinkDownError: not now.
        """
        table = await asyncio.to_thread(self._tables.get, self._name)
        if table is None:
            return  # it was dropped, with all that was in it
        memory = self._memory = TableMemory(self._all_memory, self._name, table.created_us)
        if memory.unsettled is not None:
            has_ids = any(column.name == self._settings.id_column for column in table.columns)
            await self._ask(memory.unsettled, has_ids=has_ids)

    async def deliver(self, rows: pa.RecordBatch, ids: Sequence[str]) -> list[Outcome]:
        """Append rows, with others; return an outcome for each. When it is cancelled, the append goes on."""
        if self._down is not None:
            raise SinkDownError(self._down.detail, self._down.after_s)
        item = Item(rows, ids, asyncio.get_running_loop().create_future(), [None] * len(ids))
        self._queue.put_nowait(item)
        return await item.future

    async def close(self) -> None:
        """Stop; an append that is under way is found out about at the next start."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if self._stream is not None:
            await self._stream.disconnect()
        if self._memory is not None and self._memory.unsettled is None:
            self._memory.save()

    async def _run(self) -> None:
        items: list[Item] = []
        held: Item | None = None
        try:
            while True:
                items = [held or await self._queue.get()]
                held, size = None, items[0].rows.nbytes
                while not self._queue.empty():
                    held = self._queue.get_nowait()
                    size += held.rows.nbytes
                    if size > APPEND_BYTES:
                        break
                    items.append(held)
                    held = None
                await self._deliver([item for item in items if not item.future.done()])
        except SinkDownError as error:
            self._down = error
        except asyncio.CancelledError:
            self._down = SinkDownError("the sink was closed")
            raise
        except Exception as error:  # noqa: BLE001  what the last append came to is not known: nothing may follow it
            self._down = SinkDownError(f"unforeseen at table {self._name}: {type(error).__name__}")
            _log.exception("bigquery_writer_failed", table=self._name)
        finally:
            waiting = [*items, *([held] if held else [])]
            while not self._queue.empty():
                waiting.append(self._queue.get_nowait())
            for item in waiting:
                if not item.future.done():
                    item.future.set_exception(self._down or SinkDownError("the sink was closed"))

    async def _deliver(self, items: Sequence[Item]) -> None:
        if not items:
            return
        for item in items:
            await self._keep_in_step(item.rows.schema)
        memory = self._memory
        if memory is None:
            raise AssertionError("a table that is in step has a memory")
        parts = []
        for item in items:
            for row, is_known in enumerate(memory.recent.are_known(item.ids)):
                if is_known:
                    item.outcomes[row] = DELIVERED
            new = [row for row, outcome in enumerate(item.outcomes) if outcome is None]
            parts += list(fitting(item, new, self._schema))
        await self._append_all(appends(parts, self._schema))
        for item in items:
            if not item.future.done():  # it was cancelled: what is in is known when it is offered again
                item.future.set_result([outcome for outcome in item.outcomes if outcome is not None])

    async def _keep_in_step(self, rows: pa.Schema) -> None:
        """See that the table has the columns of rows, and the stream knows of them."""
        key = rows.serialize().to_pybytes()
        if key in self._in_step:
            return
        settings = self._settings
        try:
            table = await asyncio.to_thread(
                self._tables.in_step, self._name, rows, create=settings.create, partition_by=settings.partition_by
            )
        except SchemaConflictError as error:
            raise SinkDownError(f"table {self._name}: {error}") from error
        if self._memory is None:
            self._memory = TableMemory(self._all_memory, self._name, table.created_us)
        used = {name.lower() for name in (*self._schema.names, *rows.names)}
        self._schema = pa.schema([arrow_field(column) for column in table.columns if column.name.lower() in used])
        self._in_step.add(key)

    async def _open_stream(self) -> Stream:
        """Return a stream that knows all columns."""
        wanted = {name.lower() for name in self._schema.names}
        waited = 0.0
        while self._stream is None or not wanted <= self._stream.columns:
            if self._stream is not None:
                await self._stream.disconnect()
                if waited >= _NEW_COLUMNS_S:
                    raise _new_columns(self._name)
                if waited:
                    await _pause(1.0)
                waited += 1.0
            self._stream = await create_stream(self._client, self._name, self._settings.timeout_s)
            self._has_landed = False
        return self._stream

    async def _append(self, part: Part) -> Retry | None:
        """Append rows, and say what became of them; return why what follows them has to wait as well, if it has."""
        rounds = 0
        while part.owners:
            stream = await self._open_stream()
            intent = Intent(stream.name, stream.offset, part.ids, part.span(self._settings.partition_by))
            memory = self._memory
            if memory is None:
                raise AssertionError("a stream has a memory")
            memory.intend(intent)
            answer, is_clear = await self._send(stream, part.rows)
            if is_clear and answer.kind is Kind.LANDED:
                memory.settle(part.ids)
                stream.offset += len(part.owners)
                self._has_landed = True
                part.say(DELIVERED)
                return None
            if not is_clear:
                rounds += 1
                if rounds > _ROUNDS:
                    raise SinkDownError(f"appends to {self._name} get no clear answer: {answer.text}")
                landed = await self._ask(intent, has_ids=self._settings.id_column in self._schema.names)
                rows = {row for row, each in enumerate(intent.ids) if each in landed}
                part.say(DELIVERED, sorted(rows))
                part = part.without(rows)
                continue
            memory.settle(())
            if answer.kind is Kind.THROTTLED:
                wait = Retry(Fault.THROTTLED, f"BigQuery's quota: {answer.text}")
                part.say(wait)
                return wait
            if answer.kind is Kind.BAD_REQUEST and len(part.owners) > 1:  # which row is it?
                middle = len(part.owners) // 2
                return await self._append_all([part.slice(0, middle), part.slice(middle, len(part.owners))])
            part = self._refused(part, answer)
        return None

    async def _append_all(self, parts: Iterable[Part]) -> Retry | None:
        """Append one part after the other; none overtakes one that has to wait, since it may hold the same users."""
        wait = None
        for part in parts:
            if wait is None:
                wait = await self._append(part)
            else:
                part.say(wait)
        return wait

    def _refused(self, part: Part, answer: Answer) -> Part:
        """Say which rows are rejected, of a clear no; return those to send again.

        Raises:
            SinkDownError: no row is to blame.
        """
        if answer.kind is Kind.BAD_ROWS:
            bad = {row: text for row, text in answer.rows if 0 <= row < len(part.owners)}
            for row, text in bad.items():
                part.say(Rejected(Fault.REJECTED, part.complaint(text)), [row])
            if bad:
                return part.without(set(bad))
        if answer.kind is Kind.UNKNOWN_COLUMNS:
            raise _new_columns(self._name)
        if answer.kind is Kind.BAD_REQUEST and self._has_landed:  # others of its kind were taken: it is this one
            part.say(Rejected(Fault.REJECTED, f"BigQuery refuses it: {answer.text}"))
            return part.slice(0, 0)
        raise SinkDownError(f"BigQuery refuses rows for {self._name}: {answer.text}")

    async def _send(self, stream: Stream, rows: pa.RecordBatch) -> tuple[Answer, bool]:
        """Append, again where there was no answer; say, too, whether the answer says for certain what is in."""
        answer, is_again = Answer(Kind.UNCLEAR), False
        for attempt in range(_TRIES):
            if attempt > 1:
                await _pause(_PAUSE_S)
            answer = await stream.append(rows)
            if answer.kind is Kind.LANDED:
                return answer, True
            if answer.kind is Kind.THERE_ALREADY:
                # At the first try it is somebody else's: the end of the stream is not where we think it is.
                return (Answer(Kind.LANDED), True) if is_again else (answer, False)
            if answer.kind is not Kind.UNCLEAR:
                return answer, not is_again and answer.kind is not Kind.STREAM_GONE
            is_again = True
        return answer, False

    async def _ask(self, intent: Intent, *, has_ids: bool) -> frozenset[str]:
        """End the stream of an append of which it is not clear whether it is in, and find out what is.

        A finalized stream takes nothing more, and says how many rows it has. One that is gone does not: then the
        table is asked for the ids, where it has them. Where it has not, the rows are taken as not in: at least once.

        Raises:
            SinkDownError: not now; the append stays unsettled.
        """
        if self._stream is not None:
            await self._stream.disconnect()
            self._stream = None
        if self._memory is None:
            raise AssertionError("an append has a memory")
        count = await finalize(self._client, intent.stream, self._settings.timeout_s)
        ids = frozenset(intent.ids)
        if count == intent.offset + len(intent.ids):
            landed = ids
        elif count == intent.offset:
            landed = frozenset()
        elif has_ids:
            settings = self._settings
            landed = ids & await asyncio.to_thread(
                self._tables.present, self._name, settings.id_column, intent.ids, settings.partition_by, intent.span
            )
        else:
            landed = frozenset()
            _log.warning("bigquery_append_unknown", table=self._name, events=len(ids), stream_rows=count)
        self._memory.settle(each for each in intent.ids if each in landed)
        self._memory.save()
        return landed


async def _pause(pause_s: float) -> None:
    await asyncio.sleep(pause_s)


def _new_columns(name: str) -> SinkDownError:
    return SinkDownError(f"BigQuery has not noticed the new columns of {name} yet: it takes minutes", _NEW_COLUMNS_S)

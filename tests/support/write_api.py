"""A Storage Write API that answers as it is told: what bqemulator does otherwise than Google, or never does.

Streams keep their rows until they are asked for; every request is on the record.
"""

import contextlib
import dataclasses
import enum
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio
import pyarrow as pa
from google.cloud import bigquery
from google.cloud.bigquery_storage_v1 import types
from google.cloud.bigquery_storage_v1.services.big_query_write import BigQueryWriteAsyncClient
from google.cloud.bigquery_storage_v1.services.big_query_write.transports import BigQueryWriteGrpcAsyncIOTransport
from google.rpc import status_pb2

from millrace.sinks.bigquery_table import Table, column_of, missing_columns
from millrace.sinks.bigquery_writer import Writer, WriterSettings
from millrace.sinks.sink import Memory

TABLE = "shop-test.events.orders"
_SERVICE = "google.cloud.bigquery.storage.v1.BigQueryWrite"
_Codes = grpc.StatusCode
_Storage = types.StorageError.StorageErrorCode


class Act(enum.Enum):
    """What becomes of an append."""

    TAKE = "take"
    TAKE_AND_BREAK = "take and break"
    """The rows are in, and the connection ends before the answer."""
    BREAK = "break"
    """The connection ends, and the rows are not in."""
    TAKE_AND_RESTART = "take and restart"
    THROTTLE = "throttle"
    THROTTLE_AT_THE_END = "throttle at the end"
    """As the end of the connection, not as an answer."""
    BAD_ROWS = "bad rows"
    """Those whose id begins with bad; where there are none, the rows are taken."""
    BAD_REQUEST = "bad request"
    """Where a row's id begins with bad; the answer does not say which."""
    REFUSE_ALL = "refuse all"
    UNKNOWN_COLUMNS = "unknown columns"
    FINALIZED = "finalized"
    EXPIRED = "expired"
    """The stream is gone, and nobody knows how many rows it had."""
    TAKE_AND_EXPIRE = "take and expire"
    FORGET = "forget"
    """The stream is shorter than it was said to be."""
    INTRUDER = "intruder"
    """Somebody else has appended to the stream before."""
    DENY = "deny"


@dataclasses.dataclass
class _Stream:
    ids: list[str] = dataclasses.field(default_factory=list)
    is_final: bool = False


@dataclasses.dataclass
class Tables:
    """The REST API's part: a table, and questions for its ids."""

    columns: list[bigquery.SchemaField] = dataclasses.field(default_factory=list)
    asked: int = 0
    api: "WriteApi | None" = None

    def get(self, _: str) -> Table | None:
        return Table(tuple(self.columns), 1) if self.columns else None

    def in_step(self, _: str, rows: pa.Schema, **__: Any) -> Table:
        self.columns += missing_columns(self.columns, [column_of(field) for field in rows])
        return Table(tuple(self.columns), 1)

    def present(self, _: str, __: str, ids: Sequence[str], *___: Any) -> frozenset[str]:
        self.asked += 1
        if self.api is None:
            raise AssertionError("a table belongs to a service")
        return frozenset(ids) & frozenset(self.api.ids)


@dataclasses.dataclass
class WriteApi:
    """The service: acts in turn, one for each append; then it takes everything."""

    acts: list[Act] = dataclasses.field(default_factory=list)
    streams: dict[str, _Stream] = dataclasses.field(default_factory=dict)
    columns: list[str] = dataclasses.field(default_factory=list)
    """What new streams know of the table; empty: everything."""
    appends: list[tuple[str, int, int]] = dataclasses.field(default_factory=list)
    """(stream, offset, rows) of each request."""
    ids: list[str] = dataclasses.field(default_factory=list)
    """What the table holds, in order."""
    is_away: bool = False
    tables: Tables = dataclasses.field(default_factory=Tables)
    address: str = ""

    async def create(self, _: types.CreateWriteStreamRequest, context: grpc.aio.ServicerContext) -> types.WriteStream:
        await self._may_be_away(context)
        name = f"projects/shop-test/datasets/events/tables/orders/streams/s{len(self.streams)}"
        self.streams[name] = _Stream()
        names = self.columns or [column.name for column in self.tables.columns]
        fields = [types.TableFieldSchema(name=each) for each in names]
        return types.WriteStream(name=name, table_schema=types.TableSchema(fields=fields))

    async def finalize(self, request: types.FinalizeWriteStreamRequest, context: grpc.aio.ServicerContext) -> Any:
        await self._may_be_away(context)
        stream = self.streams.get(request.name)
        if stream is None:
            await context.abort(_Codes.NOT_FOUND, "Requested entity was not found")
            raise AssertionError
        stream.is_final = True
        return types.FinalizeWriteStreamResponse(row_count=len(stream.ids))

    async def append(
        self, requests: AsyncIterator[types.AppendRowsRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[types.AppendRowsResponse]:
        schema = None
        async for request in requests:
            await self._may_be_away(context)
            raw = types.AppendRowsRequest.pb(request)
            if raw.arrow_rows.writer_schema.serialized_schema:
                schema = pa.ipc.read_schema(pa.py_buffer(raw.arrow_rows.writer_schema.serialized_schema))
            rows = pa.ipc.read_record_batch(pa.py_buffer(raw.arrow_rows.rows.serialized_record_batch), schema)
            self.appends.append((request.write_stream.rpartition("/")[2], raw.offset.value, rows.num_rows))
            act = self.acts.pop(0) if self.acts else Act.TAKE
            ids = rows.column("message_id").to_pylist()
            yield await self._answer(act, request.write_stream, raw.offset.value, ids, context)

    async def _answer(
        self, act: Act, name: str, offset: int, ids: Sequence[str], context: grpc.aio.ServicerContext
    ) -> types.AppendRowsResponse:
        if act in _ENDS:
            await context.abort(*_ENDS[act])
        refusal = _refusal(act, ids)
        if refusal is not None:
            return refusal
        self._change(act, name)
        stream = self.streams.get(name)
        if stream is None:
            return _error(_Codes.NOT_FOUND, "Requested entity was not found", _Storage.STREAM_NOT_FOUND)
        if stream.is_final:
            return _error(_Codes.INVALID_ARGUMENT, "finalized", _Storage.STREAM_FINALIZED)
        if offset < len(stream.ids):
            return _error(_Codes.ALREADY_EXISTS, "the offset is within stream", _Storage.OFFSET_ALREADY_EXISTS)
        if offset > len(stream.ids):
            return _error(_Codes.OUT_OF_RANGE, "the offset is beyond stream", _Storage.OFFSET_OUT_OF_RANGE)
        stream.ids += ids
        self.ids += ids
        if act is Act.TAKE_AND_EXPIRE:
            del self.streams[name]
        if act in (Act.TAKE_AND_BREAK, Act.TAKE_AND_EXPIRE):
            await context.abort(_Codes.UNAVAILABLE, "the connection is draining")
        if act is Act.TAKE_AND_RESTART:
            await context.abort(_Codes.ABORTED, "Closing the stream because server is restarted")
        return types.AppendRowsResponse(append_result=types.AppendRowsResponse.AppendResult(offset=offset))

    def _change(self, act: Act, name: str) -> None:
        stream = self.streams.get(name, _Stream())
        if act is Act.FINALIZED:
            stream.is_final = True
        elif act is Act.EXPIRED:
            self.streams.pop(name, None)
        elif act is Act.FORGET:
            stream.ids.clear()
        elif act is Act.INTRUDER:
            stream.ids += ["intruder"] * 5

    async def _may_be_away(self, context: grpc.aio.ServicerContext) -> None:
        if self.is_away:
            await context.abort(_Codes.UNAVAILABLE, "away")

    @contextlib.asynccontextmanager
    async def writer(self, memory: Memory, **settings: Any) -> AsyncIterator[Writer]:
        """Run a writer of TABLE, which has recovered what the memory says."""
        channel = grpc.aio.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)])
        client = BigQueryWriteAsyncClient(transport=BigQueryWriteGrpcAsyncIOTransport(channel=channel))
        given = {"create": True, "id_column": "message_id", "partition_by": "received_at", "timeout_s": 5.0, **settings}
        self.tables.api = self
        writer = Writer(TABLE, WriterSettings(**given), client, self.tables, memory)  # type: ignore[arg-type]
        try:
            await writer.recover()
            yield writer
        finally:
            await writer.close()
            await channel.close()


_ENDS = {
    Act.BREAK: (_Codes.UNAVAILABLE, "the connection is draining"),
    Act.THROTTLE_AT_THE_END: (_Codes.RESOURCE_EXHAUSTED, "too many connections"),
}


def _refusal(act: Act, ids: Sequence[str]) -> types.AppendRowsResponse | None:
    bad = [row for row, each in enumerate(ids) if each.startswith("bad")]
    if act is Act.THROTTLE:
        return _error(_Codes.RESOURCE_EXHAUSTED, "quota of bytes a minute")
    if act is Act.DENY:
        return _error(_Codes.PERMISSION_DENIED, "no bigquery.tables.updateData")
    if act is Act.UNKNOWN_COLUMNS:
        return _error(_Codes.INVALID_ARGUMENT, "extra", _Storage.SCHEMA_MISMATCH_EXTRA_FIELDS)
    if act is Act.REFUSE_ALL or (act is Act.BAD_REQUEST and bad):
        return _error(_Codes.INVALID_ARGUMENT, "malformed")
    if act is Act.BAD_ROWS and bad:
        errors = [types.RowError(index=row, code=1, message="Invalid value 'secret' at total") for row in bad]
        return types.AppendRowsResponse(row_errors=errors, error=status_pb2.Status(code=3, message="row errors"))
    return None


def _error(code: grpc.StatusCode, message: str, storage: int | None = None) -> types.AppendRowsResponse:
    status = status_pb2.Status(code=code.value[0], message=message)
    if storage is not None:
        detail = status.details.add()
        detail.Pack(types.StorageError.pb(types.StorageError(code=storage, error_message=message)))
    return types.AppendRowsResponse(error=status)


@contextlib.asynccontextmanager
async def write_api(*acts: Act) -> AsyncIterator[WriteApi]:
    """Serve it on a free port."""
    api = WriteApi(list(acts))
    handlers = {
        "CreateWriteStream": grpc.unary_unary_rpc_method_handler(
            api.create, types.CreateWriteStreamRequest.deserialize, types.WriteStream.serialize
        ),
        "FinalizeWriteStream": grpc.unary_unary_rpc_method_handler(
            api.finalize, types.FinalizeWriteStreamRequest.deserialize, types.FinalizeWriteStreamResponse.serialize
        ),
        "AppendRows": grpc.stream_stream_rpc_method_handler(
            api.append, types.AppendRowsRequest.deserialize, types.AppendRowsResponse.serialize
        ),
    }
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 32 * 1024 * 1024)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    api.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield api
    finally:
        await server.stop(None)

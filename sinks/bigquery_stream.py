"""A stream of the Storage Write API: rows are appended at an offset, and what the answer says of them.

Offsets make an append idempotent, and a finalized stream tells how many rows it has:
https://cloud.google.com/bigquery/docs/write-api-best-practices#manage_stream_offsets_to_achieve_exactly-once_semantics
"""

import asyncio
import dataclasses
import enum
from typing import Any

import grpc
import grpc.aio
import pyarrow as pa
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.cloud.bigquery_storage_v1 import types
from google.cloud.bigquery_storage_v1.services.big_query_write import BigQueryWriteAsyncClient
from google.rpc import status_pb2

from millrace.sinks.bigquery_table import down

_Codes = grpc.StatusCode
_StorageError = types.StorageError.pb(types.StorageError())
_StorageCode = types.StorageError.StorageErrorCode


class Kind(enum.Enum):
    """What an answer means for the rows of the append."""

    LANDED = "landed"
    THERE_ALREADY = "there already"
    """The offset was written before: by the same rows, where they were sent before."""
    BAD_ROWS = "bad rows"
    """None was appended, because of some."""
    BAD_REQUEST = "bad request"
    THROTTLED = "throttled"
    UNKNOWN_COLUMNS = "unknown columns"
    """The service has not noticed yet that the table has them: minutes, as it says."""
    STREAM_GONE = "stream gone"
    """Finalized, expired, not found, or shorter than the offset."""
    DENIED = "denied"
    UNCLEAR = "unclear"
    """No answer: the rows may be in, or not."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What became of an append; text holds nothing of the rows but for BAD_ROWS."""

    kind: Kind
    text: str = ""
    rows: tuple[tuple[int, str], ...] = ()
    """(row of the request, what the service says of it)."""


_KINDS = {
    _Codes.ALREADY_EXISTS: Kind.THERE_ALREADY,
    _Codes.OUT_OF_RANGE: Kind.STREAM_GONE,
    _Codes.NOT_FOUND: Kind.STREAM_GONE,
    _Codes.FAILED_PRECONDITION: Kind.STREAM_GONE,
    _Codes.INVALID_ARGUMENT: Kind.BAD_REQUEST,
    _Codes.RESOURCE_EXHAUSTED: Kind.THROTTLED,
    _Codes.PERMISSION_DENIED: Kind.DENIED,
    _Codes.UNAUTHENTICATED: Kind.DENIED,
}
_STORAGE_KINDS = {
    _StorageCode.STREAM_FINALIZED: Kind.STREAM_GONE,
    _StorageCode.STREAM_NOT_FOUND: Kind.STREAM_GONE,
    _StorageCode.STREAM_ALREADY_COMMITTED: Kind.STREAM_GONE,
    _StorageCode.INVALID_STREAM_STATE: Kind.STREAM_GONE,
    _StorageCode.OFFSET_OUT_OF_RANGE: Kind.STREAM_GONE,
    _StorageCode.OFFSET_ALREADY_EXISTS: Kind.THERE_ALREADY,
    _StorageCode.SCHEMA_MISMATCH_EXTRA_FIELDS: Kind.UNKNOWN_COLUMNS,
}
_BY_NUMBER = {code.value[0]: code for code in _Codes}


def answer_of(response: types.AppendRowsResponse) -> Answer:
    """Read a response: an error in one says for certain that the rows were not appended."""
    raw = types.AppendRowsResponse.pb(response)
    if raw.row_errors:
        return Answer(Kind.BAD_ROWS, rows=tuple((each.index, each.message) for each in raw.row_errors))
    if raw.WhichOneof("response") == "error":
        kind, text = _meaning(raw.error)
        return Answer(kind, text)
    return Answer(Kind.LANDED)


def _meaning(status: status_pb2.Status) -> tuple[Kind, str]:
    for detail in status.details:
        held = type(_StorageError)()
        if detail.Unpack(held) and held.code in _STORAGE_KINDS:
            return _STORAGE_KINDS[held.code], status.message[:300]
    code = _BY_NUMBER.get(status.code, _Codes.UNKNOWN)
    return _KINDS.get(code, Kind.UNCLEAR), f"{code.name}: {status.message[:300]}"


@dataclasses.dataclass
class Stream:
    """A committed stream of ours, and the connection to it. One append at a time."""

    client: BigQueryWriteAsyncClient
    name: str
    columns: frozenset[str]
    """What the service knows of the table, in lower case."""
    timeout_s: float
    offset: int = 0
    """Of the next row."""
    _call: Any = None
    _schema: pa.Schema | None = None

    async def append(self, rows: pa.RecordBatch) -> Answer:
        """Append rows at the offset, and wait for the answer; the offset stays as it is."""
        request = types.AppendRowsRequest(write_stream=self.name, offset=self.offset)
        raw = types.AppendRowsRequest.pb(request)
        raw.arrow_rows.rows.serialized_record_batch = rows.serialize().to_pybytes()
        try:
            async with asyncio.timeout(self.timeout_s):
                if self._call is None or self._schema != rows.schema:
                    await self.disconnect()
                    raw.arrow_rows.writer_schema.serialized_schema = rows.schema.serialize().to_pybytes()
                    raw.trace_id = "millrace"
                    routed = (("x-goog-request-params", f"write_stream={self.name}"),)
                    self._call = self.client.transport.append_rows(metadata=routed)
                    self._schema = rows.schema
                await self._call.write(request)
                response = await self._call.read()
                if response is not grpc.aio.EOF:
                    return answer_of(response)
                code, text = await self._call.code(), await self._call.details()
        except grpc.aio.AioRpcError as error:
            code, text = error.code(), error.details()
            status = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
            if isinstance(status, bytes):
                await self.disconnect()
                return Answer(*_meaning(status_pb2.Status.FromString(status)))
        except TimeoutError:
            code, text = _Codes.DEADLINE_EXCEEDED, f"no answer within {self.timeout_s:g} s"
        except asyncio.InvalidStateError:
            code, text = _Codes.UNAVAILABLE, "the connection was closed"
        await self.disconnect()
        # OUT_OF_RANGE and ALREADY_EXISTS as the end of a call mean what they mean in an answer.
        return Answer(_KINDS.get(code, Kind.UNCLEAR), f"{code.name}: {(text or '')[:300]}")

    async def disconnect(self) -> None:
        """Close the connection; the stream stays."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
            await call.code()  # its tasks have ended


async def create_stream(client: BigQueryWriteAsyncClient, table: str, timeout_s: float) -> Stream:
    """Create a stream of a table, `project.dataset.table`.

    Raises:
        SinkDownError: not now.
    """
    try:
        made = await client.create_write_stream(
            parent=_path(table),
            write_stream=types.WriteStream(type_=types.WriteStream.Type.COMMITTED),
            retry=None,
            timeout=timeout_s,
        )
    except (api.GoogleAPIError, auth.GoogleAuthError) as error:
        raise down(error, f"a new stream of {table}") from error
    return Stream(client, made.name, frozenset(each.name.lower() for each in made.table_schema.fields), timeout_s)


async def finalize(client: BigQueryWriteAsyncClient, name: str, timeout_s: float) -> int | None:
    """End a stream for good, and return how many rows it has; None where it cannot say: it is gone.

    Raises:
        SinkDownError: not now.
    """
    try:
        return int((await client.finalize_write_stream(name=name, retry=None, timeout=timeout_s)).row_count)
    except (api.NotFound, api.FailedPrecondition, api.InvalidArgument):
        return None
    except (api.GoogleAPIError, auth.GoogleAuthError) as error:
        raise down(error, "the end of a stream") from error


def _path(table: str) -> str:
    project, dataset, name = table.split(".")
    return f"projects/{project}/datasets/{dataset}/tables/{name}"

"""The sink `bigquery`: rows for tables of BigQuery, each exactly once, through the Storage Write API.

    bigquery_writer.py   deliveries -> appends, one at a time, and what becomes of them
    bigquery_stream.py   an append at an offset of a committed stream
    bigquery_table.py    the table's columns kept in step with the rows
    bigquery_memory.py   which append is under way, over the end of the process

docs/sinks/bigquery.md says what is promised, and when.
"""

import dataclasses
import re
from collections.abc import Sequence

import grpc.aio
from google.api_core.client_options import ClientOptions
from google.auth import exceptions as auth
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery
from google.cloud.bigquery_storage_v1.services.big_query_write import BigQueryWriteAsyncClient
from google.cloud.bigquery_storage_v1.services.big_query_write.transports import BigQueryWriteGrpcAsyncIOTransport

from millrace.sinks.bigquery_memory import remembered_tables
from millrace.sinks.bigquery_table import Tables
from millrace.sinks.bigquery_writer import Writer, WriterSettings
from millrace.sinks.sink import CannotOpenSinkError, Delivery, Memory, Outcome, Sink, SinkDownError

_PROJECT = re.compile(r"[a-z][a-z0-9-]{4,}[a-z0-9]|[a-z0-9.-]+:[a-z][a-z0-9-]{4,}[a-z0-9]|[a-z][a-z0-9-]*")
_DATASET = re.compile(r"\w{1,1024}", re.ASCII)
_TABLE = re.compile(r"[\w-]{1,1024}")
_COLUMN = re.compile(r"[A-Za-z_]\w{0,299}", re.ASCII)
_CHANNEL = [
    ("grpc.max_send_message_length", 32 * 1024 * 1024),
    ("grpc.use_local_subchannel_pool", 1),  # a new connection is tried at once, whatever became of the last one
]


@dataclasses.dataclass
class _Opened:
    """What `open` made."""

    memory: Memory | None = None
    client: BigQueryWriteAsyncClient | None = None
    tables: Tables | None = None
    writers: dict[str, Writer] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class BigQuery(Sink):
    """Appends rows to tables.

    Attributes:
        table: project.dataset.table; a route's target overrides it: a table, dataset.table, or all three.
        create: whether tables that are missing are created. Columns that are missing are added in any case.
        partition_by: the column by whose day a table is partitioned that is created; no such column, no partitions.
        id_column: the column with the message_id; where the service cannot say what became of an append, it is
            asked for.
        timeout_s: how long an answer may take.
        endpoint: host:port of an emulator's Storage Write API; empty: Google's, with the credentials of the machine.
        rest_endpoint: the URL of that emulator's REST API.
        max_events: the most events of a delivery; larger appends cost less.
    """

    table: str
    create: bool = True
    partition_by: str = "received_at"
    id_column: str = "message_id"
    timeout_s: float = 20.0
    endpoint: str = ""
    rest_endpoint: str = ""
    max_events: int = 2_000
    _opened: _Opened = dataclasses.field(default_factory=_Opened, init=False, repr=False, compare=False)

    keeps_ids = True

    def __post_init__(self) -> None:
        """Check the settings: ValueError, in a sentence."""
        self._named("")
        if bool(self.endpoint) != bool(self.rest_endpoint):
            raise ValueError("endpoint and rest_endpoint are given both, or none of them")
        for name in ("partition_by", "id_column"):
            if not _COLUMN.fullmatch(getattr(self, name)):
                raise ValueError(f"{name} must be the name of a column, got {getattr(self, name)!r}")
        if self.timeout_s <= 0 or self.max_events <= 0:
            raise ValueError("timeout_s and max_events must be positive")

    def _named(self, target: str) -> str:
        """Return the full name of a table; ValueError where it is none."""
        own = self.table.split(".")
        parts = target.split(".") if target else []
        name = [*own[: len(own) - len(parts)], *parts] if len(parts) < 3 else parts
        kinds = (_PROJECT, _DATASET, _TABLE)
        if len(name) != 3 or not all(kind.fullmatch(part) for kind, part in zip(kinds, name, strict=True)):
            raise ValueError(f"a table is named project.dataset.table, got {target or self.table!r}")
        return ".".join(name)

    def check_target(self, target: str) -> None:
        """Refuse what is no name of a table."""
        self._named(target)

    async def open(self, memory: Memory) -> None:
        """Connect, and find out about appends that were under way when the last process ended."""
        await self.close()
        opened = self._opened
        opened.memory = memory
        try:
            opened.client, rest = self._clients()
        except auth.GoogleAuthError as error:
            raise CannotOpenSinkError(
                "there are no credentials for BigQuery: set GOOGLE_APPLICATION_CREDENTIALS, or run as a service account"
            ) from error
        opened.tables = Tables(rest)
        for name in remembered_tables(memory):
            await self._writer(name).recover()

    def _clients(self) -> tuple[BigQueryWriteAsyncClient, bigquery.Client]:
        project = self._named("").split(".", maxsplit=1)[0]
        if not self.endpoint:
            return BigQueryWriteAsyncClient(), bigquery.Client(project=project)
        channel = grpc.aio.insecure_channel(self.endpoint, options=_CHANNEL)
        rest = bigquery.Client(
            project=project,
            credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
            client_options=ClientOptions(api_endpoint=self.rest_endpoint),
        )
        return BigQueryWriteAsyncClient(transport=BigQueryWriteGrpcAsyncIOTransport(channel=channel)), rest

    def _writer(self, name: str) -> Writer:
        opened = self._opened
        if name not in opened.writers:
            if opened.client is None or opened.tables is None or opened.memory is None:
                raise SinkDownError("the sink is not open")
            settings = WriterSettings(self.create, self.id_column, self.partition_by, self.timeout_s)
            opened.writers[name] = Writer(name, settings, opened.client, opened.tables, opened.memory)
        return opened.writers[name]

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        """Append the rows; those that are known to be in the table already are delivered."""
        try:
            name = self._named(delivery.target)
        except ValueError as error:
            raise SinkDownError(f"the target of route {delivery.route}: {error}") from error
        return await self._writer(name).deliver(delivery.rows, delivery.message_ids)

    async def close(self) -> None:
        """Disconnect."""
        opened = self._opened
        for writer in opened.writers.values():
            await writer.close()
        opened.writers.clear()
        if opened.client is not None:
            await opened.client.transport.close()
        if opened.tables is not None:
            opened.tables.client.close()
        opened.client = opened.tables = opened.memory = None

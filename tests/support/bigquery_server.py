"""Runs bqemulator, with what it lacks of BigQuery and the sink needs; started by tests/support/bigquery.py.

- DuckDB's extensions for GEOGRAPHY and Avro are downloaded at its start; nothing here needs them, so they stay away.
- Its tables.patch writes new columns into its catalog, but not into the table itself.
- Its threads share one connection of DuckDB without a lock: a query may get the result of an append.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any

from bqemulator.api.routes.tables import _field_to_rest
from bqemulator.catalog.duckdb_repository import DuckDBCatalogRepository
from bqemulator.cli import main
from bqemulator.grpc_api.write_servicer import BigQueryWriteHandler
from bqemulator.storage.engine import DuckDBEngine
from bqemulator.storage.sql_identifiers import quoted_table_ref
from bqemulator.storage.type_map import bq_schema_to_duckdb_columns

_one_at_a_time = threading.RLock()
_update_table = DuckDBCatalogRepository.update_table


def _locked(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*given: Any, **named: Any) -> Any:
        with _one_at_a_time:
            return method(*given, **named)

    return call


def _update_both(self: Any, meta: Any) -> Any:
    before = self.get_table(meta.project_id, meta.dataset_id, meta.table_id)
    for field in meta.schema_.fields[len(before.schema_.fields) :]:
        ((name, kind),) = bq_schema_to_duckdb_columns([_field_to_rest(field)])
        table = quoted_table_ref(meta.project_id, meta.dataset_id, meta.table_id)
        self._engine.execute(f'ALTER TABLE {table} ADD COLUMN "{name}" {kind}')
    return _update_table(self, meta)


if __name__ == "__main__":
    DuckDBEngine._load_spatial = lambda _: None
    DuckDBCatalogRepository.update_table = _update_both
    for name, method in list(vars(DuckDBCatalogRepository).items()):
        if callable(method) and not name.startswith("__"):
            setattr(DuckDBCatalogRepository, name, _locked(method))
    for kind, name in (
        (DuckDBEngine, "execute"),
        (DuckDBEngine, "fetch_arrow"),
        (BigQueryWriteHandler, "_flush_to_target"),
    ):
        setattr(kind, name, _locked(getattr(kind, name)))
    main()

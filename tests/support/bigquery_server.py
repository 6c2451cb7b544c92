"""Runs bqemulator, with the parts of BigQuery that it lacks and the sink needs; started by tests/support/bigquery.py.

- DuckDB's extensions for GEOGRAPHY and Avro are downloaded at its start; nothing here needs them, so they stay away.
- Its tables.patch writes new columns into its catalog, but not into the table itself.
"""

from typing import Any

from bqemulator.api.routes.tables import _field_to_rest
from bqemulator.catalog.duckdb_repository import DuckDBCatalogRepository
from bqemulator.cli import main
from bqemulator.storage.engine import DuckDBEngine
from bqemulator.storage.sql_identifiers import quoted_table_ref
from bqemulator.storage.type_map import bq_schema_to_duckdb_columns

_update_table = DuckDBCatalogRepository.update_table


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
    main()

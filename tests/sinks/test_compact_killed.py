"""Compaction killed at any moment, beside appends: nothing lost, nothing doubled, nothing broken."""

import random
import subprocess
import sys
import time
from pathlib import Path

from deltalake import DeltaTable

from millrace.sinks.compact import compact, vacuum
from millrace.sinks.delta import Table, open_table
from millrace.sinks.tables import ARCHIVE
from tests.support.rows import archive_rows

_COMPACT_FOR_EVER = """
import sys
from millrace.sinks.compact import compact
from millrace.sinks.delta import Table, open_table
from millrace.sinks.tables import ARCHIVE
table = open_table(sys.argv[1], ARCHIVE)
print("ready", flush=True)
while True:
    compact(table, older_than_s=0, min_files=2)
"""


def test_a_compaction_that_is_killed_leaves_every_row_once(tmp_path: Path) -> None:
    uri = str(tmp_path / "archive")
    table = open_table(uri, ARCHIVE)
    moments = random.Random(7)  # noqa: S311  the same every time
    ids: list[str] = []
    compacted = version = 0
    for life in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", _COMPACT_FOR_EVER, uri], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            until = time.monotonic() + moments.uniform(0.05, 0.6)
            while time.monotonic() < until or (life == 7 and not compacted and not _compacted(table)):
                rows = archive_rows(50, seed=version)
                assert table.commit(table.write(rows, f"w{version}"), app_id="job", version=version)
                ids += rows.column("message_id").to_pylist()
                version += 1
            process.kill()
        found = DeltaTable(uri).to_pyarrow_table(columns=["message_id"]).column("message_id").to_pylist()
        assert sorted(found) == sorted(ids)
        compacted += _compacted(table)
    assert compacted > 0
    compact(table, older_than_s=0, min_files=2)
    vacuum(table, 0)
    assert {path.name for path in (tmp_path / "archive").glob("date=*/*")} == {Path(uri).name for uri in table.uris()}
    assert table.committed_totals() == {"rows": len(ids)}


def _compacted(table: Table) -> int:
    """Return how many of its files are merged ones."""
    return sum("compact-" in path for path in table.uris())

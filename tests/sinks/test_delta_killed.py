"""A writer killed at any moment goes on where the table stands: every row once."""

import random
import subprocess
import sys
from pathlib import Path

from millrace.sinks.delta import open_table
from millrace.sinks.tables import ARCHIVE
from tests.support.rows import archive_rows

# Commits window after window, each known by its number; after a start it asks the table which one comes next.
_WRITE_FOR_EVER = """
import sys, uuid
from millrace.sinks.delta import open_table
from millrace.sinks.tables import ARCHIVE
from tests.support.rows import archive_rows
table = open_table(sys.argv[1], ARCHIVE)
done = table.committed_version("job")
window = 0 if done is None else done + 1
while True:
    files = table.write(archive_rows(10, seed=window), uuid.uuid4().hex)
    table.commit(files, app_id="job", version=window, counts={"late": 1})
    print(window, flush=True)
    window += 1
"""


def test_a_writer_that_is_killed_commits_every_window_once(tmp_path: Path) -> None:
    uri = str(tmp_path / "archive")
    moments = random.Random(11)  # noqa: S311  the same every time
    acknowledged = -1
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", _WRITE_FOR_EVER, uri], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for _ in range(moments.randrange(1, 30)):
                acknowledged = int(process.stdout.readline())
            process.kill()
            acknowledged = max([acknowledged, *map(int, process.stdout.read().split())])
    table = open_table(uri, ARCHIVE)
    last = table.committed_version("job")
    assert last is not None
    assert last >= acknowledged
    expected = [key for seed in range(last + 1) for key in archive_rows(10, seed=seed).column("message_id").to_pylist()]
    assert sorted(table.delta.to_pyarrow_table().column("message_id").to_pylist()) == sorted(expected)
    assert table.committed_totals() == {"rows": len(expected), "late": last + 1}

"""For tests of lanes: settings as `millrace.yaml` gives them, windows of events, an archive of them, and ledgers."""

import datetime as dt
from pathlib import Path

import pyarrow as pa

from millrace.config.fanout import read_fanout
from millrace.delivery.settings import LaneSettings
from millrace.sinks.delta import Table, open_table
from millrace.sinks.tables import ARCHIVE
from tests.support.rows import START, archive_rows


def lane_settings(routes: str = "- {to: out}", sink: str = "use: console") -> LaneSettings:
    """Return the settings of the one lane that these routes (to the sink `out`) make."""
    (lane,) = read_fanout(f"sinks:\n  out: {{{sink}}}\nroutes:\n  {routes}\n", "millrace.yaml").lanes
    return lane


def window(number: int, rows: int = 20, users: int = 5) -> pa.Table:
    """Return the rows of a release window of 5 s, in delivery order; the same for a number."""
    start = START + dt.timedelta(seconds=5 * number)
    return archive_rows(rows, start=start, seed=number, users=users).sort_by("order_index")


def commit(table: Table, number: int, *parts: pa.Table) -> list[str]:
    """Commit a window, as one file a part and a date; return the paths of its files."""
    files = [file for at, part in enumerate(parts or [window(number)]) for file in table.write(part, f"w{number}-{at}")]
    metadata = {"window_start_s": START.timestamp() + 5 * number}
    assert table.commit(files, app_id="job", version=number, metadata=metadata)
    return sorted(file.path for file in files)


def archive(folder: Path, *numbers: int) -> Table:
    """Make an archive of some windows."""
    table = open_table(str(folder / "archive"), ARCHIVE)
    for number in numbers:
        commit(table, number)
    return table


def ids(rows: pa.Table | pa.RecordBatch) -> list[str]:
    """Return the message ids of rows."""
    return list(rows.column("message_id").to_pylist())


def clean_log(table: Table) -> None:
    """Make a checkpoint, and delete all entries before it, as Delta does after `logRetentionDuration`."""
    table.refresh()
    table.delta.create_checkpoint()
    for number in range(table.delta.version()):
        table.location.discard(f"_delta_log/{number:020}.json")

"""What every peer prints, and the row that every peer writes."""

import dataclasses
import json
import resource
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA: pa.Schema = pa.schema(
    [
        ("user_key", pa.string()),
        ("occurred_at", pa.timestamp("us", tz="UTC")),
        ("message_id", pa.string()),
        ("type", pa.string()),
        ("event", pa.string()),
        ("user_id", pa.string()),
        ("anonymous_id", pa.string()),
        ("context", pa.string()),
        ("properties", pa.string()),
        ("traits", pa.string()),
    ]
)


@dataclasses.dataclass(frozen=True)
class Report:
    """One line of the comparison."""

    system: str
    events: int
    """That went in."""
    seconds: float
    """From the first event in to the last row written."""
    rows: int
    """Read back from the Parquet files written, not from a counter."""
    peak_rss_mb: float
    """Of the process that did the job; without the broker."""

    def print(self) -> None:
        """Print it as JSON."""
        print(json.dumps(dataclasses.asdict(self)), flush=True)


def rows_in(folder: Path) -> int:
    """Return the rows of all finished Parquet files of a folder."""
    return sum(pq.read_metadata(path).num_rows for path in folder.glob("*.parquet"))


def peak_rss_mb() -> float:
    """Return the most memory this process ever held, in MiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)

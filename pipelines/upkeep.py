"""Upkeep: on one node, small files are merged beside the job, by a process of its own.

A process, not a thread: it takes up to some hundred megabytes for a moment and gives all of them back, and the job's
own work does not wait for it.
"""

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from millrace.local import children
from millrace.pipelines.every import Every

_LOG = logging.getLogger(__name__)

_MERGED_ROWS = "100000"


def upkeep(every_s: float, tables: Sequence[str]) -> Every:
    """Return what runs `millrace compact` on each table every so many seconds; every 0 seconds never."""

    def compact(over: threading.Event) -> None:
        for table in tables:
            if not over.is_set():
                _compact(table, over)

    return Every(every_s, compact)


def _compact(table: str, over: threading.Event) -> None:
    with Path(os.devnull).open("w") as quiet:
        child = children.start("millrace.cli", ["compact", table, "--max_rows", _MERGED_ROWS], os.environ, quiet)
    while child.poll() is None and not over.wait(0.2):
        pass
    # It may be ended at any moment: a merge is one commit.
    if (code := children.end(child, 5.0)) and not over.is_set():
        _LOG.warning("compaction of %s ended with exit code %d; the next one tries again", table, code)

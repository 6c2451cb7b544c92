"""Upkeep: on one node, small files are merged beside the job, by a process of its own.

A process, not a thread: it takes up to some hundred megabytes for a moment and gives all of them back, and the job's
own work does not wait for it.
"""

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from millrace.local import children

_LOG = logging.getLogger(__name__)

_MERGED_ROWS = "100000"


class Upkeep:
    """Runs `millrace compact` on each table every so many seconds; every 0 seconds never. A context manager."""

    def __init__(self, every_s: float, tables: Sequence[str]) -> None:
        self._every_s = every_s
        self._tables = tables
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="millrace-upkeep", daemon=True)

    def __enter__(self) -> Self:
        if self._every_s:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._every_s:
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            for table in self._tables:
                self._compact(table)

    def _compact(self, table: str) -> None:
        with Path(os.devnull).open("w") as quiet:
            child = children.start("millrace.cli", ["compact", table, "--max_rows", _MERGED_ROWS], os.environ, quiet)
        while child.poll() is None and not self._ended.wait(0.2):
            pass
        # It may be ended at any moment: a merge is one commit.
        if (code := children.end(child, 5.0)) and not self._ended.is_set():
            _LOG.warning("compaction of %s ended with %d; it is tried again in %g s", table, code, self._every_s)

"""The plan of a compaction: which files of a table are merged with which. Pure."""

import dataclasses
import datetime as dt
from collections.abc import Iterator, Sequence
from itertools import groupby


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file of the table, as its log knows it."""

    path: str
    day: dt.date
    size: int
    rows: int
    low: dt.datetime
    """The smallest value of the table's time column in it."""
    modified_ms: int


def plan(files: Sequence[Entry], *, target_bytes: int, min_files: int, max_rows: int) -> list[list[Entry]]:
    """Return the groups of files to merge: one date each, next to each other in time.

    In a group no file outweighs all the others: every merge at least doubles the file a row is in, so a row is written
    again log2(target / file) times at most, not once a run.
    """
    groups: list[list[Entry]] = []
    ordered = sorted(files, key=lambda entry: (entry.day, entry.low, entry.path))
    for _, of_one_day in groupby(ordered, key=lambda entry: entry.day):
        run: list[Entry] = []
        for entry in of_one_day:
            if entry.size * 2 >= target_bytes or entry.rows >= max_rows:
                groups += _balanced(run)
                run = []
                continue
            size, rows = sum(each.size for each in run), sum(each.rows for each in run)
            if size + entry.size > target_bytes or rows + entry.rows > max_rows:
                groups += _balanced(run)
                run = []
            run.append(entry)
        groups += _balanced(run)
    return [
        group
        for group in groups
        if len(group) >= min_files or (len(group) > 1 and sum(entry.size for entry in group) * 2 >= target_bytes)
    ]


def _balanced(run: list[Entry]) -> Iterator[list[Entry]]:
    while run:
        heaviest = max(range(len(run)), key=lambda index: run[index].size)
        if run[heaviest].size * 2 <= sum(entry.size for entry in run):
            yield run
            return
        yield from _balanced(run[:heaviest])
        run = run[heaviest + 1 :]

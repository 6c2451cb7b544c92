"""The events that all systems of a comparison get: a file of JSON lines of some 760 bytes, made at 300,000/s."""

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from millrace.local.templates import Template, marked_events

BLOCK = 10_000
_COPIES = 100  # of each block's lines: 1 % exact duplicates, some 0.5 s after the first copy
START_MS = 1_767_225_600_000  # 2026-01-01
EVENTS_A_SECOND = 10_000
"""Of event time: the file holds what such a stream brings."""


class Written(NamedTuple):
    """What a file holds."""

    lines: int
    distinct: int
    """Lines without the copies."""
    size_bytes: int


def write(path: Path, lines: int, users: int = 20_000, seed: int = 0, start_ms: int = START_MS) -> Written:
    """Write a file of `lines` events, by event time within 2 s, clocks right, 1 % exact copies.

    The shop's steps repeat every 40,000 lines, with other ids and times, which begin at `start_ms` since the epoch.

    Raises:
        ValueError: no lines.
    """
    if lines <= 0:
        raise ValueError(f"lines must be positive, got {lines}")
    rng = np.random.default_rng(seed)
    events = marked_events(seed, users)
    fresh = BLOCK - _COPIES
    templates = [
        Template(b"\n".join(itertools.islice(events, fresh)) + b"\n", rng) for _ in range(min(4, 1 + lines // BLOCK))
    ]
    distinct = left = 0
    with path.open("wb") as file:
        for number in itertools.count():
            left = lines - number * BLOCK
            if left <= 0:
                break
            block = templates[number % len(templates)].filled(
                number * fresh, start_ms + (number + 1) * BLOCK * 1_000 // EVENTS_A_SECOND
            )
            whole = block.split(b"\n")[:fresh]
            whole += whole[-_COPIES:]
            file.write(b"\n".join(whole[:left]) + b"\n")
            distinct += min(left, fresh)
    return Written(lines, distinct, path.stat().st_size)


def main() -> int:
    """Write a file from the command line, and print what it holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.events_file", description=(__doc__ or "").strip())
    parser.add_argument("path", type=Path)
    parser.add_argument("--lines", type=int, default=300_000, help="events in the file (%(default)s)")
    parser.add_argument("--users", type=int, default=20_000, help="of the shop (%(default)s)")
    options = parser.parse_args()
    print(json.dumps(write(options.path, options.lines, options.users)._asdict()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

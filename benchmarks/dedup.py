"""What deduplication costs: `python -m benchmarks.dedup [IDS ...]`, default 1,000,000 10,000,000.

Time is of one core, in ns an event: batches of web events (benchmarks.decode) with 1 % copies, against a memory that
holds so many ids of a day. Memory is what the process grew by (its resident set), a day's worth entered in batches.
"""

import argparse
import ctypes
import dataclasses
import functools
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.decode import NOW_US, web
from millrace.schemas.envelope import Envelope
from millrace.transforms.copies import split
from millrace.transforms.decode import decode_envelopes
from millrace.transforms.fingerprint import fingerprints
from millrace.transforms.remembered import Facts, Remembered

BATCH_ROWS = 32_000
ROUNDS = 7
DAY_S = 86_400
ENTERED = 16_384
"""Ids that are entered at once, as a batch brings them."""


def resident_bytes() -> int:
    """Return how much of this process is in memory, freed pages given back."""
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4_096


def peak_bytes() -> int:
    """Return the most that has been in memory since the peak was started anew."""
    (line,) = (each for each in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if "VmHWM" in each)
    return int(line.split()[1]) * 1_024


@dataclasses.dataclass
class Filled:
    """A memory of so many ids, and what it took."""

    remembered: Remembered
    bytes_each: float
    peak_bytes_each: float
    ns_each: float


def fill(ids: int, end_us: int) -> Filled:
    """Return a memory that holds so many ids of the day before."""
    draw = np.random.default_rng(1)
    remembered = Remembered(DAY_S, ids * 2)
    nothing = np.zeros((0, 2), np.uint64)
    before, spent = resident_bytes(), 0
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    for start in range(0, ids, ENTERED):
        keys = draw.integers(0, 2**64, (min(ENTERED, ids - start), 2), np.uint64)
        at_us = end_us - round(DAY_S * 1e6 * (1 - start / ids))
        began = time.process_time_ns()
        remembered.add(keys, nothing, at_us)
        spent += time.process_time_ns() - began
    peak = peak_bytes()
    after = resident_bytes()
    assert len(remembered) == ids
    return Filled(remembered, (after - before) / ids, (peak - before) / ids, spent / ids)


def web_batch() -> pa.RecordBatch:
    """Return web events, 1 % of them copies of others."""
    draw = random.Random(1)
    attributes = {"source_id": "web", "received_at": "2026-11-23T10:59:59.700Z"}
    sent = [
        Envelope(json.dumps({"batch": [web(draw, first + n) for n in range(100)]}).encode(), attributes, str(first),
                 NOW_US, NOW_US)
        for first in range(0, BATCH_ROWS, 100)
    ]  # fmt: skip
    rows = decode_envelopes(sent, NOW_US).batch
    take = np.arange(rows.num_rows)
    take[::100] = take[1::100]
    places = pa.array(np.arange(rows.num_rows, dtype=np.int32))
    index = rows.schema.get_field_index("envelope_index")
    return rows.take(pa.array(take)).set_column(index, rows.schema.field(index), places)


def best_ns(run: Callable[[], object], rows: int) -> float:
    """Return the best of several rounds, ns a row."""
    times = []
    for _ in range(ROUNDS):
        began = time.process_time_ns()
        run()
        times.append(time.process_time_ns() - began)
    return min(times) / rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dedup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "ids", nargs="*", type=int, default=[1_000_000, 10_000_000], metavar="IDS", help="how many are remembered"
    )
    sizes = parser.parse_args(arguments).ids
    batch = web_batch()
    rows = batch.num_rows
    prints = fingerprints(batch)
    facts = Facts.of(batch, prints)
    print_ns = best_ns(lambda: fingerprints(batch), rows)
    facts_ns = best_ns(lambda: Facts.of(batch, prints), rows)
    print(f"fingerprint {print_ns:,.0f} ns, ids and places {facts_ns:,.0f} ns an event ({rows:,} web events)")
    print(f"{'remembered':>12} {'bytes an id':>12} {'at the peak':>12} {'enter ns':>9} {'judge ns':>9} {'split ns':>9} "
          f"{'all ns':>7}")  # fmt: skip
    for ids in sizes:
        filled = fill(ids, NOW_US)
        judged = filled.remembered.judge(batch, facts, NOW_US, repeats_pass=True)

        judge = functools.partial(filled.remembered.judge, batch, facts, NOW_US, repeats_pass=True)
        judge_ns = best_ns(judge, rows)
        split_ns = best_ns(functools.partial(split, batch, prints, judged, repeats_pass=True), rows)
        whole_ns = print_ns + facts_ns + judge_ns + split_ns + filled.ns_each
        print(f"{ids:>12,} {filled.bytes_each:>12.2f} {filled.peak_bytes_each:>12.2f} {filled.ns_each:>9,.0f} "
              f"{judge_ns:>9,.0f} {split_ns:>9,.0f} {whole_ns:>7,.0f}", flush=True)  # fmt: skip
        del filled, judge


if __name__ == "__main__":
    main()

"""The main job against its peers: the same events in, each user's in order, Parquet out; rows counted from the files.

    python -m benchmarks.throughput              all of it, some 10 minutes
    python -m benchmarks.throughput --only millrace --seconds 20

Each system runs by itself, one after the other, on the same machine in the same run; read the ratios. Millrace's rows
hold publisher, broker, Prism and job on these cores together. Its seconds run from the first publish to the last
commit; the peers' from the first event read to the last row written. What each does and does not do is in the table.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from benchmarks.stand import Measured, Stand
from millrace.broker import Broker

PEERS = (
    ("naive Beam", "benchmarks.peers.naive_beam", "20000", "Pub/Sub in, an element an event, per user and window"),
    ("Bytewax live", "benchmarks.peers.bytewax_flow --live", "300000", "file in; as an endless stream needs it"),
    ("Bytewax replay", "benchmarks.peers.bytewax_flow", "300000", "file in; a window waits for its user's next event"),
    ("DuckDB batch", "benchmarks.peers.duckdb_batch", "2000000", "file in, all at once: the ceiling"),
)
"""Name, module, events, and what it does differently."""


STAGES: tuple[tuple[str, Sequence[str]], ...] = (
    ("bare", ["--dedup_horizon_s=0"]),
    ("a day's deduplication", []),
    ("all stages", ["--config={config}"]),
)
"""What else the job is to do, and the options for it; with 100 events a message. {config}: all of EXAMPLES."""

EXAMPLES = Path(__file__).parents[1] / "examples"
"""`job.yaml` switches every stage on, and the currency example is a transform of a user's own."""


class Row(NamedTuple):
    """One line of the table."""

    system: str
    events: int
    seconds: float
    rows: int
    memory_mb: float
    remark: str

    @property
    def rate(self) -> float:
        """Rows written a second."""
        return self.rows / self.seconds if self.seconds else 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and print its tables; 1 where a system's rows do not add up."""
    options = _parser().parse_args(arguments)
    rows: list[Row] = []
    latency: list[str] = []
    with tempfile.TemporaryDirectory(prefix="millrace-bench-", dir=options.folder) as folder:
        if options.only in (None, "millrace"):
            for per_message, rate in ((100, options.rate), (1, options.rate_single)):
                _say(f"Millrace, {per_message} events a message, {options.seconds:g} s at {rate:,.0f}/s ...")
                with Stand(Path(folder) / f"millrace-{per_message}", google=options.google) as stand:
                    rows.append(_millrace(stand.run(rate, options.seconds, per_message), per_message, stand.server))
        if options.only in (None, "stages"):
            rows += [_stages(options, Path(folder) / name, name, given) for name, given in STAGES]
        if options.only in (None, "latency"):
            _say(f"Millrace at a steady 5,000 events/s for {options.steady_seconds:g} s ...")
            with Stand(Path(folder) / "steady", google=options.google, compact_every_s=60) as stand:
                latency = _latency(stand.run(5_000, options.steady_seconds, 20, pace=True), stand)
        if options.only in (None, "peers"):
            rows += [_peer(*peer) for peer in PEERS]
    print(machine())
    print(_table(rows))
    print("\n".join(latency))
    wrong = [row.system for row in rows if row.system.startswith("Millrace") and row.rows != row.events]
    if wrong:
        print(f"Rows do not add up: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def _stages(options: argparse.Namespace, folder: Path, name: str, given: Sequence[str]) -> Row:
    _say(f"Millrace, {name}, {options.stages_seconds:g} s at {options.rate:,.0f}/s ...")
    folder.parent.mkdir(exist_ok=True)
    config = folder.parent / "job.yaml"
    transform = f"- {{use: 'currency:ConvertCurrency', with: {{rates: {EXAMPLES / 'currency' / 'rates.csv'}}}}}"
    config.write_text((EXAMPLES / "job.yaml").read_text(encoding="utf-8") + f"transforms:\n{transform}\n")
    os.environ["PYTHONPATH"] = str(EXAMPLES / "currency")
    with Stand(folder, google=options.google, job_options=[each.format(config=config) for each in given]) as stand:
        measured = stand.run(options.rate, options.stages_seconds, 100)
    return _millrace(measured, 100, stand.server)._replace(system=f"Millrace, {name}")


def _millrace(measured: Measured, per_message: int, server: str) -> Row:
    rates = f"published {measured.published_per_s:,.0f}/s, read {measured.read_per_s:,.0f}/s meanwhile"
    remark = f"{server}; Pub/Sub in, per-user order, deduplication, Delta; {rates}"
    name = f"Millrace, {per_message} a message"
    return Row(name, measured.events, measured.seconds, measured.rows, measured.peak_mb, remark)


def _latency(measured: Measured, stand: Stand) -> list[str]:
    seconds = measured.latency_s
    p50, p99 = (float(pa.compute.quantile(seconds, q)[0].as_py()) for q in (0.5, 0.99))
    promised = stand.wait_s + stand.window_s + 1.0
    settings = f"order wait {stand.wait_s:g} s, window {stand.window_s:g} s"
    early, late = measured.memory_mb[len(measured.memory_mb) // 4], measured.memory_mb[-1]
    memory = f"{early:,.0f} MB after a quarter, {late:,.0f} MB at the end, {measured.peak_mb:,.0f} MB at most"
    return [
        "",
        f"Steady 5,000 events/s for {measured.seconds:.0f} s, {settings}:",
        f"  publish to archive: p50 {p50:.1f} s, p99 {p99:.1f} s (order wait + window + 1 s = {promised:.1f} s)",
        f"  memory, all processes: {memory}",
    ]


def _peer(name: str, module: str, events: str, remark: str) -> Row:
    _say(f"{name}, {int(events):,} events ...")
    command = [sys.executable, "-m", *module.split(), "--events", events]
    with Broker(data=":memory:") as broker:  # for the one that reads Pub/Sub
        environment = {**os.environ, "PUBSUB_EMULATOR_HOST": broker.address}
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2_000:]}")
    report = json.loads(done.stdout.strip().splitlines()[-1])
    return Row(report["system"], report["events"], report["seconds"], report["rows"], report["peak_rss_mb"], remark)


def _table(rows: Sequence[Row]) -> str:
    lines = [("system", "events in", "seconds", "rows out", "rows/s", "Millrace is", "memory", "remark")]
    ours = next((row.rate for row in rows), 0.0)
    lines += [
        (
            row.system, f"{row.events:,}", f"{row.seconds:.1f}", f"{row.rows:,}", f"{row.rate:,.0f}",
            f"{ours / row.rate:.1f}x" if row.rate else "-", f"{row.memory_mb:,.0f} MB", row.remark,
        )
        for row in rows
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numeric = range(1, 7)
    return "\n".join(
        "  ".join(cell.rjust(width) if i in numeric else cell.ljust(width)
                  for i, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    )  # fmt: skip


def machine() -> str:
    """Say in a line what this was measured on."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in cpuinfo if "model name" in line]
    model = names[0] if names else platform.processor()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    stamp = time.strftime("%Y-%m-%d")
    return (
        f"{stamp}: {os.cpu_count()} cores ({model}), {memory_gib:.0f} GiB, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, load {load:.1f}"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", choices=("millrace", "stages", "latency", "peers"), help="only this part (all)")
    add("--seconds", type=float, default=60.0, help="how long Millrace's traffic lasts (%(default)g)")
    add("--rate", type=float, default=100_000.0, help="events/s published, 100 a message (%(default)g)")
    add("--rate_single", type=float, default=20_000.0, help="events/s published, one a message (%(default)g)")
    add("--stages_seconds", type=float, default=30.0, help="how long the traffic for each set of stages (%(default)g)")
    add("--steady_seconds", type=float, default=120.0, help="how long the steady part lasts (%(default)g)")
    add("--google", action="store_true", help="Google's emulator instead of the embedded broker")
    add("--folder", type=Path, help="where the files go meanwhile (the system's temporary folder)")
    return parser


if __name__ == "__main__":
    sys.exit(main())

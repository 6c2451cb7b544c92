"""Each peer's Parquet files hold what the job asks for; the numbers of the comparison are worth nothing otherwise."""

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmarks import events_file
from benchmarks.peers import duckdb_batch, naive_beam, report

LINES = 12_000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("events") / "events.ndjson"
    written = events_file.write(path, LINES, users=200)
    assert written == events_file.Written(LINES, LINES - 100, path.stat().st_size)
    return path


def run_duckdb(source: Path, folder: Path) -> report.Report:
    return duckdb_batch.run(source, folder, LINES)


def run_bytewax(source: Path, folder: Path) -> report.Report:
    pytest.importorskip("bytewax", reason="Bytewax has no wheel for this Python")
    from benchmarks.peers import bytewax_flow

    return bytewax_flow.run(source, folder, LINES)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def expected(source: Path) -> dict[str, dict[str, Any]]:
    """Read the file line by line, the simplest way there is."""
    found = {}
    for line in source.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        found[event["messageId"]] = {
            "user_key": event.get("userId") or event["anonymousId"],
            "occurred_at": datetime.fromisoformat(event.get("originalTimestamp") or event["timestamp"]),
            "message_id": event["messageId"],
            "type": event["type"],
            "event": event.get("event") or event.get("name"),
            "user_id": event.get("userId") or None,
            "anonymous_id": event["anonymousId"],
            "context": event["context"],
            "properties": event.get("properties"),
            "traits": event.get("traits"),
        }
    return found


def as_read(row: dict[str, Any]) -> dict[str, Any]:
    texts = {name: row[name] and json.loads(row[name]) for name in ("context", "properties", "traits")}
    at = row["occurred_at"]
    return {**row, **texts, "occurred_at": at if at.tzinfo else datetime.fromisoformat(f"{at.isoformat()}+00:00")}


def test_the_file_is_a_stream_of_some_760_bytes_an_event(source: Path) -> None:
    lines = source.read_bytes().splitlines()
    assert len(lines) == LINES
    assert 650 < source.stat().st_size / LINES < 850
    assert len(set(lines)) == len({json.loads(line)["messageId"] for line in lines}) == LINES - 100
    times = [row["occurred_at"] for row in expected(source).values()]
    assert any(later < earlier for earlier, later in pairwise(times))
    assert 1 < (max(times) - min(times)).total_seconds() < 4


def test_a_file_has_at_least_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lines must be positive, got 0"):
        events_file.write(tmp_path / "events.ndjson", 0)


@pytest.mark.parametrize("run", [run_duckdb, run_bytewax])
def test_a_peer_writes_every_event_once_and_each_users_in_order(
    source: Path, tmp_path: Path, run: Callable[[Path, Path], report.Report]
) -> None:
    found = run(source, tmp_path / "out")
    written = rows(tmp_path / "out")
    assert {row["message_id"]: as_read(row) for row in written} == expected(source)
    assert len(written) == found.rows == LINES - 100
    sequences: dict[str, list[tuple[datetime, str]]] = defaultdict(list)
    for row in written:
        sequences[row["user_key"]].append((row["occurred_at"], row["message_id"]))
    assert all(sequence == sorted(sequence) for sequence in sequences.values())
    assert found.events == LINES
    assert found.seconds > 0
    assert found.peak_rss_mb > 20


@pytest.mark.slow
@pytest.mark.usefixtures("pubsub_server")
def test_the_naive_pipeline_writes_what_it_is_sent() -> None:
    command = [sys.executable, "-m", "benchmarks.peers.naive_beam", "--events", "1000", "--seconds", "100"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    found = json.loads(ran.stdout)
    assert (found["events"], found["rows"]) == (1_000, 1_000)
    assert found["system"].startswith("Beam 2.")


def test_the_naive_pipeline_needs_a_broker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    monkeypatch.setattr(sys, "argv", ["naive_beam"])
    assert naive_beam.main() == 2
    assert capsys.readouterr().err == "naive_beam: set PUBSUB_EMULATOR_HOST to a broker, host:port\n"


def test_the_naive_pipeline_orders_a_user_by_time() -> None:
    lines = [
        b'{"type":"track","messageId":"b","anonymousId":"a","event":"x","timestamp":"2026-01-01T00:00:02.000Z"}',
        b'{"type":"page","messageId":"a","anonymousId":"a","userId":"","originalTimestamp":"2026-01-01T00:00:01.000Z"}',
    ]
    users = [naive_beam.row(line) for line in lines]
    assert [user for user, _ in users] == ["a", "a"]
    assert [row["message_id"] for row in naive_beam.in_order(("a", [row for _, row in users]))] == ["a", "b"]

"""Lanes as processes, killed again and again, with a destination that fails in every way, and an archive that grows."""

import datetime as dt
import functools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

from millrace.delivery.ledger import Ledger, Mark
from millrace.sinks.delta import Table, open_table
from millrace.sinks.tables import ARCHIVE, UNDELIVERED
from tests.support.rows import START, archive_rows

WINDOWS = 12
ROWS = 400
HOT = 30
CONFIG = """
sinks:
  whole: {{use: "{faulty}", with: {{record: {root}/whole, seed: {seed}}}, {settings}}}
  single: {{use: "{faulty}", with: {{record: {root}/single, keeps_order: false, seed: {seed}}}, {settings}}}
routes:
  - {{to: whole}}
  - {{to: single, when: type == "track", columns: [message_id, event]}}
"""
SETTINGS = f"retry: {{first: 10ms, longest: 40ms, tries: 3, for: 400s}}, deadline: 200ms, hot_user_events: {HOT}"


class Delivering:
    """`millrace deliver`, which may be killed with its lanes, or lane by lane."""

    def __init__(self, root: Path) -> None:
        self._command = [sys.executable, "-m", "millrace.cli", "deliver", "--config", str(root / "millrace.yaml"),
                         "--archive", str(root / "archive"), "--state", str(root / "state"), "--from_start", "--quiet",
                         "--drain_s=60"]  # fmt: skip
        self._log = (root / "log").open("ab")
        self.state = root / "state"
        self.process: subprocess.Popen[bytes] | None = None
        self._started_us = 0

    def start(self) -> None:
        self._started_us = time.time_ns() // 1_000
        self.process = subprocess.Popen(self._command, stderr=self._log, start_new_session=True)

    def kill(self) -> None:
        """End all of it at once; the lanes are on a leash."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def kill_lane(self, name: str) -> None:
        """End one lane, which is started again."""
        pid = _pid(self.state / f"{name}.sqlite")
        if pid is not None:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                return

    def runs(self) -> bool:
        """Whether both lanes have said so since the start."""
        return all(_said_us(self.state / f"{name}.sqlite") > self._started_us for name in ("whole", "single"))

    def wait(self, until: Callable[[], bool]) -> None:
        assert self.process is not None
        end = time.monotonic() + 60
        while not until():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.02)  # it polls: nothing here can be waited for

    def said(self) -> str:
        return Path(self._log.name).read_text()[-4_000:]

    def close(self) -> None:
        self._log.close()

    def drain(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(120)


def _pid(path: Path) -> int | None:
    if not path.exists():
        return None
    ledger = Ledger(path, read_only=True)
    try:
        status = ledger.status()
    finally:
        ledger.close()
    return None if status is None or status[1].state == "stopped" else status[1].pid


def _said_us(path: Path) -> int:
    ledger = Ledger(path, read_only=True)
    try:
        status = ledger.status()
    finally:
        ledger.close()
    return 0 if status is None else status[0]


@pytest.fixture
def delivering(tmp_path: Path) -> Iterator[Delivering]:
    found = Delivering(tmp_path)
    yield found
    if found.process is not None and found.process.poll() is None:
        found.kill()
    found.close()


def _commit(table: Table, window: int) -> pa.Table:
    start = START + dt.timedelta(seconds=5 * window)
    rows = archive_rows(ROWS, start=start, users=40, seed=window)
    table.commit(table.write(rows, f"w{window}"), app_id="test", version=window)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_every_event_arrives_and_each_user_in_order_however_often_lanes_are_killed(
    tmp_path: Path, delivering: Delivering, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311
    (tmp_path / "millrace.yaml").write_text(
        CONFIG.format(faulty="tests.support.faulty:Faulty", root=tmp_path, seed=seed, settings=SETTINGS)
    )
    (tmp_path / "faults").touch()
    table = open_table(str(tmp_path / "archive"), ARCHIVE)
    rows = [_commit(table, 1)]
    for window in range(2, WINDOWS + 1):
        delivering.start()
        more = _taken(tmp_path) + chance.randrange(1, 200)
        delivering.wait(functools.partial(_has_taken, tmp_path, more))
        delivering.kill_lane(chance.choice(["whole", "single"]))
        rows.append(_commit(table, window))
        delivering.kill()
    (tmp_path / "faults").unlink()
    delivering.start()
    delivering.wait(delivering.runs)
    assert delivering.drain() == 0, delivering.said()

    events = pa.concat_tables(rows).to_pylist()
    for name, routed in (("whole", events), ("single", [row for row in events if row["type"] == "track"])):
        ids = {row["message_id"] for row in routed}
        rejected = {each for each in ids if each.startswith("0")}
        record = [msgspec.json.decode(line) for line in (tmp_path / name).read_bytes().splitlines()]
        assert {message_id for _, _, message_id, _ in record} == ids - rejected
        _check_first_deliveries(record, {row["message_id"]: row["order_index"] for row in routed})
        _check_accounts(tmp_path, name, ids, rejected)


def _has_taken(root: Path, enough: int) -> bool:
    return _taken(root) >= enough


def _taken(root: Path) -> int:
    return sum((root / name).read_bytes().count(b"\n") for name in ("whole", "single") if (root / name).exists())


def _check_first_deliveries(record: list[tuple[str, int, str, bool]], order: dict[str, int]) -> None:
    """Of what was delivered for the first time, and in order, each user's rises: in position and in order_index."""
    seen: set[str] = set()
    last: dict[str, tuple[int, int]] = {}
    for user, position, message_id, is_ordered in record:
        if message_id in seen or not is_ordered:
            continue
        seen.add(message_id)
        assert last.get(user, (-1, -1)) < (position, order[message_id]), (user, message_id)
        last[user] = (position, order[message_id])


def _check_accounts(root: Path, name: str, ids: set[str], rejected: set[str]) -> None:
    ledger = Ledger(root / "state" / f"{name}.sqlite", read_only=True)
    marks = Counter(mark for entry in ledger.entries() for mark in ledger.marks(entry.seq).tolist())
    totals = ledger.totals()
    assert ledger.unfinished() == []
    assert ledger.trying() == []
    ledger.close()
    expected = {Mark.DELIVERED: len(ids - rejected), Mark.DEAD: len(rejected)}
    assert {Mark(mark): count for mark, count in marks.items() if mark} == expected
    assert totals["routed"] == len(ids)
    assert (totals["delivered"], totals["dead"]) == (len(ids - rejected), len(rejected))
    dead = open_table(str(root / "undelivered"), UNDELIVERED).delta.to_pyarrow_table()
    assert {row["message_id"] for row in dead.to_pylist() if row["lane"] == name} == rejected

"""Lanes as processes, killed again and again, with a destination that fails in every way, and an archive that grows."""

import datetime as dt
import random
from collections import Counter
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

from millrace.delivery.ledger import Ledger
from millrace.delivery.records import Mark
from millrace.sinks.delta import Table, open_table
from millrace.sinks.tables import ARCHIVE, UNDELIVERED
from tests.support.deliver_process import Delivering, delivering
from tests.support.rows import START, archive_rows

WINDOWS = 10
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


def _commit(table: Table, window: int) -> pa.Table:
    start = START + dt.timedelta(seconds=5 * window)
    rows = archive_rows(ROWS, start=start, users=40, seed=window)
    table.commit(table.write(rows, f"w{window}"), app_id="test", version=window)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_every_event_arrives_and_each_user_in_order_however_often_lanes_are_killed(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    (tmp_path / "millrace.yaml").write_text(
        CONFIG.format(faulty="tests.support.faulty:Faulty", root=tmp_path, seed=seed, settings=SETTINGS)
    )
    (tmp_path / "faults").touch()
    table = open_table(str(tmp_path / "archive"), ARCHIVE)
    rows = [_commit(table, 1)]
    with delivering(tmp_path, ("whole", "single"), "--quiet", "--drain_s=60") as it:
        it.start()
        for window in range(2, WINDOWS + 1):
            # Lanes die again and again, at any moment of their work; and from time to time all of it at once.
            for _ in range(2):
                _wait_for_more(it, tmp_path, chance.randrange(1, 150))
                it.kill_lane(chance.choice(["whole", "single"]))
            rows.append(_commit(table, window))
            if window % 3 == 0:
                it.kill()
                it.start()
        (tmp_path / "faults").unlink()
        it.kill()
        it.start()
        it.wait(it.runs)
        it.terminate()
        assert it.ends(120) == 0, it.said()

    events = pa.concat_tables(rows).to_pylist()
    for name, routed in (("whole", events), ("single", [row for row in events if row["type"] == "track"])):
        ids = {row["message_id"] for row in routed}
        rejected = {each for each in ids if each.startswith("0")}
        record = [msgspec.json.decode(line) for line in (tmp_path / name).read_bytes().splitlines()]
        assert {message_id for _, _, message_id, _ in record} == ids - rejected
        _check_first_deliveries(record, {row["message_id"]: row["order_index"] for row in routed})
        _check_accounts(tmp_path, name, ids, rejected)


def _wait_for_more(it: Delivering, root: Path, more: int) -> None:
    enough = _taken(root) + more
    it.wait(lambda: _taken(root) >= enough)


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

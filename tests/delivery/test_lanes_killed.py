"""Lanes as processes, killed again and again, with a destination that fails in every way, and an archive that grows."""

import contextlib
import datetime as dt
import random
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

from millrace.delivery.ledger import Ledger
from millrace.delivery.records import ROW_BITS, Mark
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
        record = [msgspec.json.decode(line) for line in (tmp_path / name).read_bytes().splitlines()]
        _check_first_deliveries(record, {row["message_id"]: row["order_index"] for row in routed})
        _check_accounts(tmp_path, name, ids, {position: message_id for _, position, message_id, _ in record})


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


def _check_accounts(root: Path, name: str, ids: set[str], taken: dict[int, str]) -> None:
    """Every event was taken, or is on record as dead; and the ledger says so, each once."""
    undelivered = open_table(str(root / "undelivered"), UNDELIVERED).delta.to_pyarrow_table().to_pylist()
    dead = {row["position"]: row["message_id"] for row in undelivered if row["lane"] == name}
    with contextlib.closing(Ledger(root / "state" / f"{name}.sqlite", read_only=True)) as ledger:
        marks = {
            (entry.seq << ROW_BITS) + row: Mark(mark)
            for entry in ledger.entries()
            for row, mark in enumerate(ledger.marks(entry.seq).tolist())
            if mark
        }
        totals = ledger.totals()
        assert ledger.unfinished() == []
        assert ledger.trying() == []
    of = {mark: {position for position, each in marks.items() if each is mark} for mark in Mark}
    assert of[Mark.DELIVERED] | of[Mark.DEAD] == set(marks)
    assert of[Mark.DELIVERED] <= set(taken)
    assert of[Mark.DEAD] <= set(dead)
    both = taken | dead
    assert sorted(both[position] for position in marks) == sorted(ids)
    assert {each for each in ids if each.startswith("0")} <= {both[position] for position in of[Mark.DEAD]}
    assert (totals["routed"], totals["delivered"]) == (len(ids), len(of[Mark.DELIVERED]))
    assert totals["dead"] == len(of[Mark.DEAD])

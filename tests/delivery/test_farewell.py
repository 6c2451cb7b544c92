"""What a run of `millrace deliver` says when it ends: a line for each lane."""

import contextlib
from pathlib import Path
from typing import Any

import pytest

from millrace.delivery.farewell import farewell, totals_of
from millrace.delivery.ledger import Ledger
from millrace.delivery.records import Status


@pytest.mark.parametrize(
    ("is_ordered", "said", "line"),
    [
        (True, {"state": "stopped"}, "crm: delivered 5 in this run; nothing waits."),
        (True, {"state": "stopped", "waiting": 1_200}, "crm: delivered 5 in this run; 1,200 wait."),
        (
            True,
            {"state": "stopped", "waiting": 3, "behind": 20_000},
            "crm: delivered 5 in this run; 3 wait, and 20,000 rows of the archive are yet to be read.",
        ),
        (True, {"state": "down", "waiting": 3}, "crm: delivered 5 in this run; 3 wait, as it said last."),
        (
            False,
            {"state": "stopped", "waiting": 3},
            "crm: delivered 5 in this run; what it has not acknowledged waits in its subscription.",
        ),
    ],
)
def test_a_lane_says_what_it_did_and_what_waits(
    tmp_path: Path, is_ordered: bool, said: dict[str, Any], line: str
) -> None:
    path = tmp_path / "crm.sqlite"
    assert totals_of(path) == {}
    with contextlib.closing(Ledger(path)) as ledger:
        ledger.add_totals({"routed": 10, "delivered": 2, "dead": 1, "parked": 2}, 0)
        before = totals_of(path)
        assert before == {"routed": 10, "delivered": 2, "dead": 1, "parked": 2}
        ledger.add_totals({"routed": 10, "delivered": 5, "parked": -1}, 3_600_000_000)
        ledger.set_status(Status(sink="crm", is_ordered=is_ordered, **said))
    assert farewell(path, before) == line


def test_what_else_became_of_events_is_said_too(tmp_path: Path) -> None:
    path = tmp_path / "crm.sqlite"
    with contextlib.closing(Ledger(path)) as ledger:
        ledger.add_totals({"delivered": 1_000, "dead": 2, "skipped": 3, "unreadable": 4}, 0)
        ledger.set_status(Status(sink="crm", is_ordered=True, state="stopped"))
    assert farewell(path, {}) == ("crm: delivered 1,000 in this run, dead 2, skipped 3, unreadable 4; nothing waits.")


def test_a_lane_without_a_ledger_that_can_be_read(tmp_path: Path) -> None:
    broken = tmp_path / "crm.sqlite"
    broken.write_bytes(b"this is no database" * 100)
    for path in (broken, tmp_path / "shop.sqlite"):
        assert farewell(path, {}) == f"{path.stem}: delivered 0 in this run; what waits is not known."

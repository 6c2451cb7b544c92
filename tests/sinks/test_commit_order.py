"""On one node windows are committed oldest first, in whatever order they and their timers come."""

from pathlib import Path
from typing import Any

import pytest
from apache_beam.utils.timestamp import Timestamp

from millrace.sinks import archive
from millrace.sinks.commit import Committed, Part
from millrace.sinks.job_tables import Tables


class Timers:
    """Keeps what is set."""

    def __init__(self) -> None:
        self.at_us: set[int] = set()

    def set(self, at: Timestamp, dynamic_timer_tag: str) -> None:
        assert dynamic_timer_tag == str(at.micros)
        self.at_us.add(at.micros)


@pytest.mark.parametrize("fired", [[1, 2, 3, 9], [3, 1, 2, 9], [2, 9, 1, 3], [9, 3, 2, 1]])
def test_a_timer_commits_all_that_is_due_and_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fired: list[int]
):
    commits: list[tuple[int, int]] = []

    def commit(_tables: Tables, parts: list[Part], window_us: int) -> Committed:
        commits.append((window_us, len(parts)))
        return Committed(len(parts), 0, 0)

    monkeypatch.setattr(archive, "_commit", commit)
    fn, timers = archive._CommitInOrderFn(Tables.at(tmp_path)), Timers()
    other = archive._CommitInOrderFn(Tables.at(tmp_path / "other"))
    for at_us in (3, 1, 9, 2, 1):
        list(fn.process((0, Part()), Timestamp(micros=at_us), timers))
    list(other.process((0, Part()), Timestamp(micros=1), timers))
    assert timers.at_us == {1, 2, 3, 9}
    done: list[Any] = [each for now in fired for each in fn.when_due(Timestamp(micros=now))]
    assert commits == [(1, 2), (2, 1), (3, 1), (9, 1)]
    assert [(each.timestamp.micros, each.value.rows) for each in done] == commits
    assert [each.value.rows for each in other.when_due(Timestamp(micros=1))] == [1]
    assert archive._WAITING == {}

"""Commit: everything once, nothing acknowledged before it is safe. On real tables."""

from pathlib import Path

import pytest

from millrace.sinks import commit
from millrace.sinks.commit import Committed
from millrace.sinks.job_tables import Tables, patiently
from millrace.sinks.storage import StorageError
from tests.support.batches import NOON_US, event
from tests.support.commits import WINDOW_US, Desk, Done, Window

NEXT_US = NOON_US + WINDOW_US


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture(params=["travelling", "written ahead"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways that a group takes to its commit."""
    if request.param == "written ahead":
        monkeypatch.setattr(commit, "TRAVELLING_BYTES", 0)
    name: str = request.param
    return name


def place(message_id: str, envelope: str = "", index: int = 0) -> tuple[str, str, int]:
    return message_id, envelope or f"e-{message_id}", index


def test_a_window_comes_in_whole_and_once_and_only_then_is_it_acknowledged(desk: Desk, sizes: str):
    rows = [event(f"m{number}", number % 4, user=f"u{number % 3}") for number in range(8)]
    window = desk.prepare(desk.deliver(rows))
    assert desk.acked() == []
    assert desk.commit(window) == Done(rows=8, late=0, duplicates=0, redelivered=0)
    assert desk.acked() == sorted(f"1/e-m{number}" for number in range(8))
    assert desk.places("archive") == [place(f"m{number}") for number in range(8)]
    assert desk.places("duplicates") == []
    log = desk.table("archive")
    assert log.column("user_key").to_pylist() == sorted(log.column("user_key").to_pylist()) or sizes == "written ahead"


def test_an_envelope_is_acknowledged_when_its_last_event_is_committed(desk: Desk, sizes: str):
    rows = desk.deliver([event("a", 1, envelope_id="e"), event("b", 6, envelope_id="e", envelope_index=1)])
    desk.commit(desk.prepare(rows[:1]))
    assert desk.acked() == []
    desk.commit(desk.prepare(rows[1:]), NEXT_US)
    assert desk.acked() == ["1/e"]


def test_late_events_are_counted(desk: Desk, sizes: str):
    done = desk.window(event("in time", 1), event("late", 1, arrived_s=3), event("later", 2, arrived_s=4, user="bob"))
    assert done == Done(rows=3, late=2, duplicates=0, redelivered=0)
    totals = desk.committer.archive.committed_totals()
    assert totals == {"rows": 3, "late": 2}


def test_an_empty_window_is_no_commit(desk: Desk):
    version = desk.committer.archive.delta.version()
    assert desk.commit(Window([], [])) == Done(0, 0, 0, 0)
    assert desk.committer.archive.delta.version() == version


def test_redelivered_events_are_dropped_and_acknowledged(desk: Desk, sizes: str):
    desk.window(event("a", 1), event("b", 2))
    done = desk.window(event("a", 1), event("b", 2), event("c", 3), window_us=NEXT_US)
    assert done == Done(rows=1, late=0, duplicates=0, redelivered=2)
    assert desk.acked() == ["1/e-a", "1/e-b", "2/e-a", "2/e-b", "2/e-c"]
    assert desk.places("archive") == [place("a"), place("b"), place("c")]
    assert desk.places("duplicates") == []


def test_events_redelivered_within_their_window_are_dropped_and_acknowledged(desk: Desk, sizes: str):
    rows = [*desk.deliver([event("a", 1)]), *desk.deliver([event("a", 1)])]
    assert desk.commit(desk.prepare(rows)) == Done(1, 0, 0, 1)
    assert desk.acked() == ["1/e-a", "2/e-a"]
    assert (desk.places("archive"), desk.places("duplicates")) == ([place("a")], [])


def test_a_copy_of_another_place_is_a_duplicate_once(desk: Desk, sizes: str):
    desk.window(event("a", 1, envelope_id="first"))
    copy = event("a", 1, envelope_id="second", envelope_index=3)
    assert desk.window(copy, window_us=NEXT_US) == Done(0, 0, 1, 0)
    assert desk.window(copy, window_us=NEXT_US) == Done(0, 0, 0, 1)
    assert desk.acked() == ["1/first", "2/second", "3/second"]
    assert desk.places("archive") == [place("a", "first")]
    assert desk.places("duplicates") == [place("a", "second", 3)]
    (row,) = desk.table("duplicates").to_pylist()
    assert (row["kept_envelope_id"], row["kept_envelope_index"], row["user_key"]) == (None, None, "ann")


def test_a_copy_in_the_same_window_says_of_which_it_is_and_is_a_duplicate_once(desk: Desk, sizes: str):
    rows = [event("a", 1, envelope_id="first"), event("a", 2, envelope_id="second")]
    assert desk.window(*rows) == Done(1, 0, 1, 0)
    assert desk.window(*rows) == Done(0, 0, 0, 2)
    (row,) = desk.table("duplicates").to_pylist()
    assert (row["envelope_id"], row["kept_envelope_id"], row["kept_envelope_index"]) == ("second", "first", 0)


@pytest.mark.parametrize("kept", ["early", "late"])
def test_a_redelivered_event_beside_a_copy_is_no_duplicate_whichever_sorts_first(desk: Desk, sizes: str, kept: str):
    rows = {"early": event("a", 1, envelope_id="early"), "late": event("a", 2, envelope_id="late")}
    other = next(name for name in rows if name != kept)
    desk.window(rows[kept])  # committed; its acknowledgement is lost
    assert desk.window(*rows.values(), window_us=NEXT_US) == Done(0, 0, 1, 1)
    assert desk.places("archive") == [place("a", kept)]
    assert desk.places("duplicates") == [place("a", other)]


def test_copies_of_several_users_in_one_window_are_duplicates(desk: Desk, sizes: str):
    rows = [event("a", 1, user=user, envelope_id=user) for user in ("ann", "bob", "eve", "joe")]
    assert desk.window(*rows) == Done(1, 0, 3, 0)
    ((_, kept, _),) = desk.places("archive")
    assert [envelope for _, envelope, _ in desk.places("duplicates")] == sorted({"ann", "bob", "eve", "joe"} - {kept})
    assert desk.acked() == ["1/ann", "1/bob", "1/eve", "1/joe"]


def test_events_of_two_sources_with_one_id_are_two_events(desk: Desk, sizes: str):
    rows = [event("a", 1, source_id="web", envelope_id="w"), event("a", 1, source_id="app", envelope_id="a")]
    assert desk.window(*rows) == Done(2, 0, 0, 0)


def test_groups_written_ahead_that_turn_out_to_repeat_come_in_once(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(commit, "TRAVELLING_BYTES", 0)
    rows = [event("a", 1), event("b", 1), event("c", 1, user="bob")]
    # Both windows are written before either is committed: neither knows of the other.
    first, second = (desk.prepare(desk.deliver(rows)) for _ in range(2))
    assert all(part.written is not None for part in [*first.parts, *second.parts])
    assert desk.commit(first) == Done(3, 0, 0, 0)
    assert desk.commit(second, NEXT_US) == Done(0, 0, 0, 3)
    assert desk.places("archive") == [place("a"), place("b"), place("c")]
    assert len(desk.acked()) == 6


@pytest.mark.parametrize("after", [False, True], ids=["nothing went in", "it went in after all"])
@pytest.mark.parametrize("failing", ["archive", "duplicates"])
def test_what_the_storage_refused_is_not_acknowledged_and_the_same_again_adds_it_once(
    desk: Desk, sizes: str, failing: str, after: bool
):
    desk.window(event("old", 1))
    rows = [event("a", 1), event("b", 2), event("a", 3, envelope_id="copy"), event("old", 1, envelope_id="again")]
    window = desk.prepare(desk.deliver(rows))
    assert desk.acked() == ["1/e-old"]
    with desk.failing(failing, after=after), pytest.raises(StorageError, match="the store is away"):
        desk.commit(window, NEXT_US)
    kept, copies = ["2/e-a", "2/e-b"], ["2/again", "2/copy"]
    acked = desk.acked()
    assert acked == (kept if failing == "duplicates" else [])
    desk.commit(window, NEXT_US)
    assert sorted(acked + desk.acked()) == copies + kept
    assert desk.places("archive") == [place("a"), place("b"), place("old")]
    assert desk.places("duplicates") == [place("a", "copy"), place("old", "again")]
    assert desk.committer.archive.committed_totals()["rows"] == 3


def test_nothing_that_failed_is_taken_for_committed(desk: Desk, sizes: str):
    with desk.failing("archive"), pytest.raises(StorageError):
        desk.window(event("a", 1))
    assert desk.window(event("a", 1), event("b", 2)) == Done(2, 0, 0, 0)


def test_a_restart_remembers_what_is_committed(desk: Desk, sizes: str):
    desk.window(event("a", 1), event("b", 2), event("b", 3, envelope_id="copy"))
    desk.restart()
    done = desk.window(*(event(id_, 1) for id_ in "abc"), event("b", 3, envelope_id="copy"), window_us=NEXT_US)
    assert done == Done(1, 0, 0, 3)
    assert desk.acked() == ["2/copy", "2/e-a", "2/e-b", "2/e-c"]
    assert desk.places("archive") == [place("a"), place("b"), place("c")]
    assert desk.places("duplicates") == [place("b", "copy")]


def test_a_crash_between_the_two_commits_leaves_the_duplicates_to_the_redelivery(desk: Desk, sizes: str):
    rows = [event("a", 1), event("a", 2, envelope_id="copy"), event("b", 3)]
    with desk.failing("duplicates"), pytest.raises(StorageError):
        desk.window(*rows)
    desk.restart()
    assert (desk.places("archive"), desk.places("duplicates")) == ([place("a"), place("b")], [])
    assert desk.window(*rows) == Done(0, 0, 1, 2)
    assert (desk.places("archive"), desk.places("duplicates")) == ([place("a"), place("b")], [place("a", "copy")])


def test_dead_letters_come_in_once_by_their_place(desk: Desk):
    whole, one = event("x", 1, envelope_index=-1), event("y", 1, envelope_index=4)
    assert desk.refuse(whole, one, one) == Committed(2, 0, 1)
    assert desk.acked() == ["1/e-x", "1/e-y"]
    desk.restart()
    assert desk.refuse(one, event("z", 2), whole, window_us=NEXT_US) == Committed(1, 0, 2)
    assert desk.acked() == ["2/e-x", "2/e-y", "2/e-z"]
    assert desk.places("dead_letters") == [place("x", index=-1), place("y", index=4), place("z")]


@pytest.mark.parametrize("after", [False, True], ids=["nothing went in", "it went in after all"])
def test_dead_letters_that_the_storage_refused_are_not_acknowledged_and_come_in_once(desk: Desk, after: bool):
    with desk.failing("dead_letters", after=after), pytest.raises(StorageError, match="the store is away"):
        desk.refuse(event("x", 1))
    assert desk.acked() == []
    desk.refuse(event("x", 1))
    assert desk.acked() == ["2/e-x"]
    assert desk.places("dead_letters") == [place("x")]


def test_without_an_index_a_window_that_is_committed_again_adds_nothing(tmp_path: Path, sizes: str):
    desk = Desk(tmp_path, alone=False)
    rows = [event("a", 1), event("b", 2, user="bob"), event("a", 2, envelope_id="copy")]
    for _ in range(2):
        desk.commit(desk.prepare(rows))
    desk.window(event("c", 6), window_us=NEXT_US)
    assert desk.places("archive") == [place("a"), place("b"), place("c")]
    assert desk.places("duplicates") == [place("a", "copy")]


def test_rows_in_a_file_stand_by_user_and_order(desk: Desk):
    desk.window(*(event(f"m{n}", (7 - n) / 2, user=f"u{n % 3}") for n in range(8)))
    table = desk.table("archive")
    found = list(zip(*(table.column(name).to_pylist() for name in ("user_key", "order_index")), strict=True))
    assert found == sorted(found)


def test_on_one_node_a_storage_that_refuses_is_waited_out_and_elsewhere_it_is_the_runner_s():
    answers: list[Exception | str] = [StorageError("the disk is full"), OSError(28, "No space left on device"), "done"]
    slept: list[float] = []

    def write() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert patiently(Tables("a", "b", "c", "d", "e", alone=True), write, slept.append) == "done"
    assert slept == [1, 2]
    answers.append(StorageError("the disk is full"))
    with pytest.raises(StorageError, match="the disk is full"):
        patiently(Tables("a", "b", "c", "d", "e", alone=False), write, slept.append)

"""Accounts: they close when everything that was answered is in the tables, the archive's part once, and never else."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.local.accounts import Accounts, accounts, closing
from millrace.local.journal import Journal, Kind, Record, records_of
from millrace.local.shop import Sent
from millrace.schemas.dead_letter import Reason

ARCHIVE, DUPLICATES, DEAD_LETTERS, DROPPED = "archive", "duplicates", "dead_letters", "dropped"
EVENTS = [Record(Kind.EVENT, name) for name in ("m1", "m2", "m3")]
PAYLOADS = {hashlib.sha256(payload).hexdigest(): payload for payload in (b"", b"\xff\x00", b"{}")}
LETTERS = [Record(Kind.LETTER, name) for name in PAYLOADS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("accounts")


def close(
    folder: Path,
    answered: Sequence[Record],
    recorded: Sequence[tuple[str, str]],
    given_up: Sequence[Record] = (),
    places: Sequence[int] | None = None,
    *,
    refused_later: Sequence[str] = (),
) -> Accounts:
    """Write the journal; fill tables with (table, name), each at a place of its own unless `places` says where."""
    path = folder / "journal.csv"
    path.unlink(missing_ok=True)
    with Journal(path) as journal:
        journal.answered(answered)
        journal.given_up(given_up)
    connection = duckdb.connect()
    for table in (ARCHIVE, DUPLICATES, DROPPED):
        connection.execute(f"CREATE TABLE {table} (message_id VARCHAR, envelope_id VARCHAR, envelope_index INT)")
    connection.execute(
        "CREATE TABLE dead_letters (payload BLOB, envelope_id VARCHAR, envelope_index INT, reason VARCHAR)"
    )
    for (table, name), place in zip(recorded, places or range(len(recorded)), strict=True):
        value = PAYLOADS[name] if table == DEAD_LETTERS else name
        reason = ["not_json"] if table == DEAD_LETTERS else []
        marks = ", ?" * len(reason)
        connection.execute(f"INSERT INTO {table} VALUES (?, 'e', ?{marks})", [value, place, *reason])  # noqa: S608
    for place, name in enumerate(refused_later, start=1_000):
        payload = b'{"type":"track","messageId":"%s"}' % name.encode()
        connection.execute("INSERT INTO dead_letters VALUES (?, 'e', ?, 'transform_failed')", [payload, place])
    return accounts(connection, path)


def test_what_was_answered_is_in_one_of_the_tables(folder: Path) -> None:
    letter = LETTERS[1]
    found = close(
        folder,
        [EVENTS[0], EVENTS[1], EVENTS[1], letter],
        [(ARCHIVE, "m1"), (ARCHIVE, "m2"), (DUPLICATES, "m2"), (DEAD_LETTERS, letter.name)],
    )
    assert found == Accounts(4, 2, 1, 1, 0, [], [], 0, 0, 0)
    assert closing(found) == "The accounting closes: collected 4 = archived 2 + duplicates 1 + dead letters 1."


def test_an_event_that_a_later_stage_refused_is_found_by_its_id(folder: Path) -> None:
    found = close(folder, EVENTS[:2], [(ARCHIVE, "m1")], refused_later=["m2"])
    assert found == Accounts(2, 1, 0, 1, 0, [], [], 0, 0, 0)
    assert not close(folder, EVENTS[:3], [(ARCHIVE, "m1")], refused_later=["m2"]).closes


def test_what_a_rule_left_out_counts_and_is_not_missed_in_the_archive(folder: Path) -> None:
    found = close(folder, EVENTS[:2], [(ARCHIVE, "m1"), (DROPPED, "m2")])
    assert found == Accounts(2, 1, 0, 0, 1, [], [], 0, 0, 0)
    assert (
        closing(found) == "The accounting closes: collected 2 = archived 1 + duplicates 0 + dead letters 0 + dropped 1."
    )


def test_what_was_kept_without_an_answer_is_a_copy_where_it_was_sent_again(folder: Path) -> None:
    found = close(folder, [EVENTS[0]], [(ARCHIVE, "m1"), (DUPLICATES, "m1"), (ARCHIVE, "m2")], EVENTS[1:])
    assert found == Accounts(1, 1, 1, 0, 0, [], [], 2, 1, 0)
    assert closing(found) == (
        "The accounting closes: collected 1 = archived 1 + duplicates 1 + dead letters 0 - sent again on the way 1."
        " Never answered: 2, of which 1 were kept."
    )


def test_what_others_sent_is_counted_and_not_judged(folder: Path) -> None:
    found = close(folder, [EVENTS[0]], [(ARCHIVE, "m1"), (ARCHIVE, "curl"), (DEAD_LETTERS, LETTERS[0].name)])
    assert found == Accounts(1, 1, 0, 0, 0, [], [], 0, 0, 2)
    assert closing(found).endswith(" Other senders: 2 events.")


def test_what_is_lost_is_named(folder: Path) -> None:
    lost = LETTERS[2]
    found = close(folder, [EVENTS[0], EVENTS[0], EVENTS[1], lost], [(ARCHIVE, "m1")])
    assert not found.closes
    assert closing(found).splitlines() == [
        "The accounting does NOT close: collected 4 against archived 1 + duplicates 0 + dead letters 0.",
        "  event m1: answered 2 times, found 1, 1 of them in the archive",
        "  event m2: answered 1 times, found 0, 0 of them in the archive",
        f"  letter {lost.name}: answered 1 times, found 0, 0 of them in the archive",
    ]


def test_a_second_row_in_the_archive_is_named(folder: Path) -> None:
    found = close(folder, [EVENTS[0]], [(ARCHIVE, "m1"), (ARCHIVE, "m1")])
    assert found.differing == [("event", "m1", 1, 2, 2)]
    assert not found.closes


def test_a_record_that_two_tables_hold_is_named(folder: Path) -> None:
    rows = [(ARCHIVE, "m1"), (DUPLICATES, "m1")]
    found = close(folder, [EVENTS[0]], rows, places=[7, 7])
    assert found.doubled == [("e", 7, 2)]
    assert not found.closes
    assert closing(found).splitlines()[-1] == "  record 7 of envelope e: recorded 2 times"


@given(
    answered=st.lists(st.sampled_from(EVENTS + LETTERS), max_size=8),
    given_up=st.lists(st.sampled_from(EVENTS + LETTERS), max_size=3),
    recorded=st.lists(
        st.tuples(st.sampled_from([ARCHIVE, DUPLICATES]), st.sampled_from([each.name for each in EVENTS]))
        | st.tuples(st.just(DEAD_LETTERS), st.sampled_from([each.name for each in LETTERS])),
        max_size=10,
    ),
)
def test_they_close_exactly_when_each_record_is_where_it_must_be(
    folder: Path, answered: list[Record], given_up: list[Record], recorded: list[tuple[str, str]]
) -> None:
    rows = Counter(recorded)

    def fits(record: Record) -> bool:
        if record.kind is Kind.LETTER:
            return rows[DEAD_LETTERS, record.name] >= answered.count(record)
        archived, copies = rows[ARCHIVE, record.name], rows[DUPLICATES, record.name]
        return archived + copies >= answered.count(record) and archived == min(1, archived + copies)

    found = close(folder, answered, recorded, given_up)
    assert found.closes == all(fits(record) for record in answered + given_up)
    sent = {record.name for record in answered + given_up}
    assert found.others == sum(count for (_, name), count in rows.items() if name not in sent)
    if found.closes:
        assert found.sent_again >= 0
        assert closing(found).startswith("The accounting closes: ")


def test_a_body_is_as_many_records_as_it_counts() -> None:
    sent = Sent(b"...", {}, 3, 1, ("m1", "m1"), (Reason.NO_USER,), (b"{}",))
    letter = Record(Kind.LETTER, hashlib.sha256(b"{}").hexdigest())
    assert records_of(sent) == [EVENTS[0], EVENTS[0], letter]


def test_a_journal_goes_on_where_the_last_run_ended(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal.csv"
    for record in EVENTS[:2]:
        with Journal(path) as journal:
            journal.answered([record])
    with Journal(path) as one, Journal(path) as two:
        two.given_up([EVENTS[2]])
        one.answered([])
    assert path.read_text() == "kind,name,answered\nevent,m1,1\nevent,m2,1\nevent,m3,0\n"


def test_an_event_under_a_derived_id_is_the_one_whose_id_it_came_with(tmp_path: Path) -> None:
    path = tmp_path / "journal.csv"
    with Journal(path) as journal:
        journal.answered([EVENTS[0], EVENTS[0], EVENTS[0]])
    connection = duckdb.connect()
    connection.execute(
        "CREATE TABLE dead_letters (payload BLOB, envelope_id VARCHAR, envelope_index INT, reason VARCHAR)"
    )
    for table in ("duplicates", "dropped"):
        connection.execute(f"CREATE TABLE {table} (message_id VARCHAR, envelope_id VARCHAR, envelope_index INT)")
    connection.execute(
        """CREATE TABLE archive AS SELECT * FROM (VALUES ('m1', NULL, 'e', 0), ('m1~a', 'm1', 'e', 1))
           AS rows (message_id, duplicate_of, envelope_id, envelope_index)"""
    )
    connection.execute("INSERT INTO duplicates VALUES ('m1', 'e', 2)")
    assert accounts(connection, path) == Accounts(3, 2, 1, 0, 0, [], [], 0, 0, 0)
    connection.execute("INSERT INTO archive VALUES ('m1', NULL, 'e', 3)")
    assert not accounts(connection, path).closes

"""Committed ids: a record is known by its place in the queue, an event by its id, too; copies are nobody's business."""

from millrace.sinks.committed_ids import CommittedIds, event_keys, firsts, place_keys
from tests.support.batches import batch, event


def test_an_event_is_held_by_its_id_and_place_whatever_else_it_says():
    rows = [
        event("m", envelope_id="e1"),
        event("m", envelope_id="e1", envelope_index=1),
        event("m", envelope_id="e2"),
        event("m", envelope_id="e1", source_id="app"),
        event("n", envelope_id="e1"),
        event("m", 30, envelope_id="e1", user="bob", type="page"),
    ]
    ids = CommittedIds(600)
    ids.add(event_keys(batch(rows[:1])), 0)
    expected = [True, False, False, False, False, True]
    assert ids.holds(event_keys(batch(rows))).tolist() == expected
    assert [ids.holds(event_keys(batch([row]))).tolist() for row in rows] == [[each] for each in expected]


def test_another_record_is_held_by_its_place_alone():
    rows = [
        event("m", envelope_id="e1"),
        event("other", envelope_id="e1"),
        event("m", envelope_id="e1", envelope_index=-1),
        event("m", envelope_id="e11"),
    ]
    ids = CommittedIds(600, place_keys)
    ids.add(ids.keys_of(batch(rows[:1])), 0)
    assert ids.holds(ids.keys_of(batch(rows))).tolist() == [True, True, False, False]


def test_it_forgets_after_its_horizon():
    ids = CommittedIds(8)
    one, other = event_keys(batch([event("a")])), event_keys(batch([event("b")]))
    ids.add(one, 0)
    ids.add(other, 8_000_000)
    assert (ids.holds(one).tolist(), len(ids)) == ([True], 2)
    ids.add(other, 10_000_000)
    assert ids.holds(one).tolist() == [False]


def test_of_the_same_records_here_the_first_counts():
    rows = [event("a"), event("b"), event("a"), event("a", envelope_index=1)]
    assert firsts(event_keys(batch(rows))).tolist() == [True, True, False, True]


def test_no_rows_have_no_keys():
    assert event_keys(batch([])).shape == place_keys(batch([])).shape == (0, 2)

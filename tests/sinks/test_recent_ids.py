"""Ids that are known again over the end of a process."""

from hypothesis import given
from hypothesis import strategies as st

from millrace.sinks import recent_ids
from millrace.sinks.recent_ids import SLOT_IDS, SLOTS, RecentIds
from millrace.testing import DictMemory


def test_what_was_written_is_known_to_the_next_process_with_its_note():
    memory = DictMemory()
    ids = RecentIds(memory, "table")
    assert (ids.note, ids.are_known(["a"])) == (b"", [False])
    ids.add(["a"])
    ids.write(b"first")
    ids.add(["b"])
    assert ids.are_known(["a", "b", "c"]) == [True, True, False]
    after = RecentIds(memory, "table")
    assert (after.note, after.are_known(["a", "b", "c"])) == (b"first", [True, False, False])
    assert RecentIds(memory, "table", "another").are_known(["a"]) == [False]
    assert RecentIds(memory, "other").are_known(["a"]) == [False]


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=60))
def test_the_last_ids_are_known_and_the_memory_is_bounded(steps: list[tuple[int, bool]]):
    slot_ids, recent_ids.SLOT_IDS = recent_ids.SLOT_IDS, 4
    try:
        memory, written, number = DictMemory(), [], 0
        ids = RecentIds(memory, "table")
        for count, is_restarted in steps:
            new = [f"m{number + n}" for n in range(count)]
            number += count
            ids.add(new)
            ids.write(b"%d" % number)
            written += new
            if is_restarted:
                ids = RecentIds(memory, "table")
            assert ids.note == b"%d" % number
            recent = written[-(SLOTS - 1) * 4 :]
            assert all(ids.are_known(recent))
            held = sum(ids.are_known(written))
            assert held <= SLOTS * (4 + 5)
            assert sum(len(value) for value in memory.held.values()) <= SLOTS * ((4 + 5) * 16 + 64)
    finally:
        recent_ids.SLOT_IDS = slot_ids


def test_more_is_remembered_than_a_lane_holds_in_its_hands():
    assert (SLOTS - 1) * SLOT_IDS > 50_000

"""Copies: the first goes on, a copy leaves a record, another event with its id is kept; whatever the arrangement."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.schemas import duplicate
from millrace.transforms.copies import ADDS, Remembering, deduplicate
from millrace.transforms.fingerprint import fingerprints
from millrace.transforms.recent_ids import place_hashes
from millrace.transforms.remembered import Remembered
from tests.support.batches import batch, event

DAY_S = 86_400.0
Row = dict[str, Any]


class Seen(NamedTuple):
    """What came of some rows, each named by its envelope."""

    kept: dict[str, str]
    """The id under which it was kept."""
    copies: dict[str, str]
    """The id of which it is a copy."""


def memory(horizon_s: float = DAY_S, max_ids: int = 1_000) -> Remembered:
    return Remembered(horizon_s, max_ids)


def run(remembered: Remembered, rows: Sequence[Row], *, repeats_pass: bool = True) -> list[Remembering]:
    return list(deduplicate(batch(rows), remembered, repeats_pass=repeats_pass))


def see(remembered: Remembered, *rows: Row, repeats_pass: bool = True) -> Seen:
    done = run(remembered, rows, repeats_pass=repeats_pass)
    kept = [row for each in done for row in each.unique.batch.to_pylist()]
    copies = [row for each in done for row in each.unique.duplicates.to_pylist()]
    return Seen(
        {row["envelope_id"]: row["message_id"] for row in kept},
        {row["envelope_id"]: row["kept_message_id"] for row in copies},
    )


def derived(row: Row) -> str:
    return f"{row['message_id']}~{fingerprints(batch([row]))[0]:016x}"


def buy(message_id: str, envelope: str, at_s: float = 0, price: int = 1, **more: Any) -> Row:
    return event(message_id, at_s, envelope_id=envelope, properties=f'{{"price":{price}}}', **more)


def test_the_first_goes_on_with_its_fingerprint_and_a_copy_leaves_a_record_that_says_which_when_and_of_which():
    first, copy = buy("m", "e1", 1), buy("m", "e2", 2, envelope_index=3, receipt=8, arrived_s=5)
    (done,) = run(memory(), [copy, first])
    (print_,) = set(fingerprints(batch([first, copy])).view(np.int64).tolist())
    assert done.unique.batch.schema == pa.schema([*batch([]).schema, *ADDS])
    (kept,) = done.unique.batch.to_pylist()
    assert kept == batch([first]).to_pylist()[0] | {"fingerprint": print_, "duplicate_of": None}
    (record,) = done.unique.duplicates.to_pylist()
    (arrived,) = batch([copy]).column("arrived_at").to_pylist()
    assert done.unique.duplicates.schema == duplicate.BATCH
    assert record == {
        "message_id": "m", "source_id": "shop", "user_key": "ann", "envelope_id": "e2", "envelope_index": 3,
        "published_at": arrived, "released_at": arrived, "fingerprint": print_, "kept_message_id": "m",
        "kept_envelope_id": "e1", "kept_envelope_index": 0, "date": arrived.date(), "receipt": 8,
    }  # fmt: skip


def test_a_copy_in_a_later_batch_is_known_by_id_and_content():
    remembered = memory()
    assert see(remembered, buy("m", "e1")) == ({"e1": "m"}, {})
    (done,) = run(remembered, [buy("m", "e2")])
    assert done.unique.batch.num_rows == 0
    (record,) = done.unique.duplicates.to_pylist()
    assert (record["kept_message_id"], record["kept_envelope_id"], record["kept_envelope_index"]) == ("m", None, None)


def test_another_event_with_the_same_id_is_kept_under_an_id_of_its_own_and_flagged():
    remembered = memory()
    first, other = buy("m", "e1", price=1), buy("m", "e2", price=2)
    (done,) = run(remembered, [first])
    (done,) = run(remembered, [other])
    (row,) = done.unique.batch.to_pylist()
    assert (row["message_id"], row["duplicate_of"], row["properties"]) == (derived(other), "m", '{"price":2}')
    assert (done.unique.synthetic, done.unique.duplicates.num_rows) == (1, 0)
    # A copy of it is a copy, of the derived id.
    assert see(remembered, buy("m", "e3", price=2), buy("m", "e4", price=1)) == ({}, {"e3": derived(other), "e4": "m"})


def test_natural_and_synthetic_ones_in_one_batch():
    one, two = buy("m", "e1", 1, price=1), buy("m", "e3", 2, price=2)
    rows = [buy("m", "e4", 5, price=2), buy("m", "e2", 4, price=1), two, one, buy("n", "e5")]
    assert see(memory(), *rows) == (
        {"e1": "m", "e3": derived(two), "e5": "n"},
        {"e2": "m", "e4": derived(two)},
    )


def test_one_id_of_two_sources_is_two_events():
    rows = [buy("m", "e1"), buy("m", "e2", source_id="app")]
    assert see(memory(), *rows) == ({"e1": "m", "e2": "m"}, {})


@pytest.mark.parametrize("passes", [True, False])
def test_a_message_delivered_again_is_no_copy_and_goes_on_on_one_node_as_it_did_before(passes: bool):
    remembered = memory()
    rows = [buy("m", "e1"), buy("m", "e2", price=2), buy("n", "e3")]
    kept, _ = first = see(remembered, *rows)
    assert first == ({"e1": "m", "e2": derived(rows[1]), "e3": "n"}, {})
    assert see(remembered, *rows, repeats_pass=passes) == (kept if passes else {}, {})


def test_both_deliveries_of_a_message_in_one_batch_go_on_with_their_receipts():
    (done,) = run(memory(), [buy("m", "e1", receipt=1), buy("m", "e1", receipt=2)])
    assert done.unique.batch.column("receipt").to_pylist() == [1, 2]
    assert done.unique.repeats == 1


def test_a_message_delivered_again_goes_on_even_if_the_job_now_makes_something_else_of_it():
    # A privacy rule that changed over a restart changes what is archived, but not that this is the same message.
    remembered = memory()
    see(remembered, buy("m", "e1", price=1))
    assert see(remembered, buy("m", "e1", price=2)) == ({"e1": "m"}, {})


HORIZON_S = 800.0
SLACK_S = HORIZON_S / 8


@pytest.mark.parametrize(
    ("after_s", "is_copy"), [(1, True), (HORIZON_S, True), (HORIZON_S + SLACK_S, False), (1e9, False)]
)
@pytest.mark.parametrize("price", [1, 2], ids=["of the first", "of another one with its id"])
def test_a_copy_is_new_again_once_the_horizon_has_passed(after_s: float, is_copy: bool, price: int):
    remembered = memory(HORIZON_S)
    see(remembered, buy("m", "e1", price=1), buy("m", "e2", price=2))
    copied, id_ = buy("m", "e3", after_s, price=price), "m"
    if price == 2:
        id_ = derived(copied)
    found = see(remembered, copied)
    assert found == (({}, {"e3": id_}) if is_copy else ({"e3": "m"}, {}))


def test_time_is_that_of_arrival():
    remembered = memory(HORIZON_S)
    see(remembered, buy("m", "e1", 0, arrived_s=0))
    see(remembered, buy("n", "e2", 1e7, arrived_s=1))  # a client whose clock is far ahead
    assert see(remembered, buy("m", "e3", 0, arrived_s=2)) == ({}, {"e3": "m"})


def test_a_batch_whose_arrivals_are_far_apart_is_taken_by_their_time():
    rows = [buy("m", "late", 0, arrived_s=5_000), buy("m", "early", 9, arrived_s=10), buy("m", "soon", 9, arrived_s=20)]
    assert see(memory(HORIZON_S), *rows) == ({"late": "m", "early": "m"}, {"soon": "m"})


def test_beyond_its_bound_the_oldest_are_forgotten_early_an_eighth_at_a_time():
    remembered = memory(max_ids=80)
    forgotten = 0
    for number in range(40):
        rows = [buy(f"m{number}-{n}", f"e{number}-{n}", number) for n in range(5)]
        forgotten += sum(done.forgotten for done in run(remembered, rows))
        assert len(remembered) <= 80
    assert forgotten == 200 - len(remembered)
    assert len(remembered) > 80 - 10 - 5
    newest = [buy(f"m{number}-{n}", "again", 40) for number in range(28, 40) for n in range(5)]
    assert [done.unique.duplicates.num_rows for done in run(remembered, newest)] == [60]
    assert [done.unique.duplicates.num_rows for done in run(remembered, [buy("m0-0", "again", 40)])] == [0]


def test_an_id_that_a_thousand_events_bear_keeps_them_all():
    rows = [buy("undefined", f"e{number}", price=number // 2) for number in range(2_000)]
    (done,) = run(memory(max_ids=10_000), rows)
    assert (done.unique.batch.num_rows, done.unique.synthetic, done.unique.duplicates.num_rows) == (1_000, 999, 1_000)
    assert len(set(done.unique.batch.column("message_id").to_pylist())) == 1_000


def test_nothing_comes_of_nothing():
    assert run(memory(), []) == []


def archived(*done: Remembering) -> pa.RecordBatch:
    """Return what the archive holds of rows that went on."""
    (batches,) = [[each.unique.batch for each in done]]
    names = ("source_id", "message_id", "envelope_id", "envelope_index", "published_at", "fingerprint", "duplicate_of")
    return pa.Table.from_batches(batches).select(names).combine_chunks().to_batches()[0]


def test_a_restart_remembers_what_the_archive_holds():
    rows = [buy("m", "e1", price=1), buy("m", "e2", price=2), buy("n", "e3")]
    again = memory()
    again.recall(archived(*run(memory(), rows)))
    assert see(again, *rows) == ({"e1": "m", "e2": derived(rows[1]), "e3": "n"}, {})
    assert see(again, buy("m", "e4", price=1), buy("m", "e5", price=2)) == ({}, {"e4": "m", "e5": derived(rows[1])})


def test_an_event_archived_before_there_were_fingerprints_may_be_the_same():
    names = ("source_id", "message_id", "envelope_id", "envelope_index", "published_at")
    old = batch([buy("m", "e1", price=1)]).select(names)
    old = old.append_column(ADDS[0], pa.nulls(1, pa.int64())).append_column(ADDS[1], pa.nulls(1, pa.string()))
    remembered = memory()
    remembered.recall(old)
    assert see(remembered, buy("m", "e2", price=2), buy("m", "e1")) == ({"e1": "m"}, {"e2": "m"})


def test_an_event_under_a_derived_id_is_known_when_the_first_of_its_id_was_not_committed():
    first, other = buy("m", "e1", price=1), buy("m", "e2", price=2)
    remembered, again = memory(), memory()
    run(remembered, [first])  # and lost in a crash, unacknowledged
    again.recall(archived(*run(remembered, [other])))
    assert see(again, other) == ({"e2": derived(other)}, {})
    assert see(again, buy("m", "e3", price=2)) == ({}, {"e3": derived(other)})
    assert see(again, first) == ({"e1": "m"}, {})


def test_a_copy_on_record_stays_one_when_both_come_again_in_another_order():
    again = memory()
    again.record(place_hashes(batch([buy("m", "e2")])))
    assert set(see(again, buy("m", "e2")).copies) == {"e2"}  # its record is there already; so it gets its ack
    assert see(again, buy("m", "e1")) == ({"e1": "m"}, {})
    assert set(see(again, buy("m", "e2"), buy("m", "e3")).copies) == {"e2", "e3"}


class Model:
    """A dict of what was kept, by id and content; one batch at a time, in the order that is promised."""

    def __init__(self) -> None:
        self.places: dict[str, tuple[str, int]] = {}  # of the first of each id: envelope, price
        self.kept: dict[tuple[str, int], str] = {}

    def take(self, rows: Sequence[tuple[str, int, str, int]]) -> tuple[dict[str, str], set[str]]:
        kept, copies = {}, set()
        for id_, price, envelope, _ in sorted(rows, key=lambda row: (row[3], row[2])):
            of = self.kept.setdefault((id_, price), envelope)
            first = self.places.setdefault(id_, (envelope, price))
            if of == envelope:
                row = buy(id_, envelope, price=price)
                kept[envelope] = id_ if first[1] == price else derived(row)
            else:
                copies.add(envelope)
        return kept, copies


rows_ = st.tuples(
    st.sampled_from("abc"), st.integers(1, 3), st.integers(0, 30).map(lambda n: f"e{n:02}"), st.integers(0, 9)
)


@given(
    batches=st.lists(st.lists(rows_, min_size=1, max_size=12), max_size=5),
    data=st.data(),
)
def test_it_says_what_a_dict_would_say_whatever_the_arrangement_in_a_batch(
    batches: list[list[tuple[str, int, str, int]]], data: st.DataObject
):
    remembered, model = memory(), Model()
    place: dict[str, tuple[str, int, str, int]] = {}
    for given_rows in batches:
        # A place in the queue always holds the same event.
        told = [place.setdefault(row[2], row) for row in given_rows]
        arranged = data.draw(st.permutations(list(told)))
        rows = [buy(id_, envelope, at_s, price=price, arrived_s=10) for id_, price, envelope, at_s in arranged]
        kept, copies = see(remembered, *rows)
        assert (kept, set(copies)) == model.take(list(dict.fromkeys(told)))


@given(prices=st.lists(st.integers(1, 4), min_size=1, max_size=6), data=st.data())
def test_in_whatever_order_batches_come_each_content_is_kept_once_and_one_has_the_id_itself(
    prices: list[int], data: st.DataObject
):
    rows = [buy("m", f"e{number}", number, price=price) for number, price in enumerate(prices)]
    arranged = data.draw(st.permutations(rows))
    remembered = memory()
    kept: list[tuple[str, str]] = []
    for row in arranged:
        for done in run(remembered, [row]):
            kept += [(each["message_id"], each["properties"]) for each in done.unique.batch.to_pylist()]
    assert sorted(content for _, content in kept) == sorted({row["properties"] for row in rows})
    assert kept[0] == ("m", arranged[0]["properties"])
    assert all(id_ == derived(row) for (id_, content), row in itertools.product(kept[1:], rows)
               if row["properties"] == content)  # fmt: skip

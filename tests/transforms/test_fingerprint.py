"""Fingerprint: of what an event says, byte for byte; not of how it came."""

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.schemas.event import BATCH
from millrace.transforms import fingerprint
from millrace.transforms.fingerprint import CONTENT, fingerprints
from tests.support.batches import NOON_US, batch, event

LATER_US = NOON_US + 9
DELIVERED: dict[str, Any] = {
    "envelope_id": "e2", "envelope_index": 7, "sent_at": NOON_US, "received_at": LATER_US, "published_at": LATER_US,
    "occurred_at": LATER_US, "arrived_at": LATER_US, "receipt": 5, "clock_flag": "future", "context_ip": "198.51.100.7",
    "context_user_agent": "curl/8", "message_id": "n", "source_id": "app", "user_key": "bob",
}  # fmt: skip


def prints(*rows: dict[str, Any]) -> list[int]:
    found: list[int] = fingerprints(batch(rows)).tolist()
    return found


def test_every_column_is_of_the_event_or_of_its_delivery():
    assert sorted([*CONTENT, *DELIVERED]) == sorted(BATCH.names)


@pytest.mark.parametrize("name", DELIVERED)
def test_how_an_event_came_does_not_count(name: str):
    assert len(set(prints(event("m"), event("m") | {name: DELIVERED[name]}))) == 1


@pytest.mark.parametrize("name", CONTENT)
def test_all_that_it_says_counts(name: str):
    values: list[Any] = [None, NOON_US, NOON_US + 1] if name == "original_timestamp" else [None, "", "a", "b"]
    rows = [event("m") | {name: value} for value in values]
    assert len(set(prints(*rows))) == len(values)


def test_json_counts_as_it_came():
    texts = ['{"a":1,"b":2}', '{"a": 1,"b":2}', '{"b":2,"a":1}', '{"a":1.0,"b":2}']
    assert len(set(prints(*(event("m", properties=text) for text in texts)))) == 4


def test_it_stays_as_it_is():
    # Golden: archives hold it, and a memory is read back from them.
    row = event("m", event="Ordered", user_id="ann", original_timestamp=NOON_US, properties='{"price":1}')
    assert prints(row, event("m")) == [10_591_533_371_397_243_872, 3_210_594_183_210_309_400]


texts = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
contents = st.fixed_dictionaries(
    dict.fromkeys(("type", "event", "user_id", "context_locale", "properties", "rest"), texts)
    | {"original_timestamp": st.none() | st.integers(0, 3)}
)


@given(rows=st.lists(contents, max_size=8), cuts=st.lists(st.integers(0, 8), max_size=3))
def test_two_events_have_one_fingerprint_just_where_they_say_the_same_whatever_batch_they_are_in(
    rows: list[dict[str, Any]], cuts: list[int]
):
    whole = batch([event("m", **row) for row in rows])
    found = fingerprints(whole)
    told = [sorted(row.items()) for row in rows]  # in one order: they may be drawn in another each
    for one in range(len(rows)):
        for other in range(one):
            assert (found[one] == found[other]) == (told[one] == told[other])
    bounds = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    parts = [fingerprints(whole.slice(start, end - start)) for start, end in itertools.pairwise(bounds)]
    assert np.concatenate(parts).tolist() == found.tolist()


def test_a_batch_too_large_for_one_go_is_taken_in_parts(monkeypatch: pytest.MonkeyPatch):
    rows = batch([event("m", event=f"E{number}") for number in range(5)])
    expected = fingerprints(rows).tolist()
    monkeypatch.setattr(fingerprint, "_AT_ONCE_BYTES", 1)
    assert fingerprints(rows).tolist() == expected


def test_columns_that_stages_add_do_not_count():
    rows = batch([event("m")])
    more = rows.append_column("violations", pa.array(["missing field"]))
    assert fingerprints(more).tolist() == fingerprints(rows).tolist()

"""The record of settled envelopes: what `millrace verify` can ask it, and what it forgets."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from millrace.delivery.ledger import Ledger
from millrace.delivery.settled import Envelopes, SettledRecord, envelope_key, envelope_keys, settled_envelopes

DAY_S = 86_400.0
NOON_US = 1_795_608_000_000_000

number_ids = st.integers(1, 10**17).map(str)
other_ids = st.text(st.characters(codec="utf-8"), max_size=20)
an_envelope = st.tuples(number_ids | other_ids, st.integers(0, 1 << 55), st.integers(1, 50_000))


def envelopes(rows: list[tuple[str, int, int]]) -> Envelopes:
    return Envelopes(
        np.array([envelope_key(each) for each, _, _ in rows], np.uint64),
        np.array([at for _, at, _ in rows], np.int64),
        np.array([events for _, _, events in rows], np.uint32),
    )


def times(values: list[int]) -> pa.Array:
    return pa.array(values, pa.int64()).cast(pa.timestamp("us", tz="UTC"))


@given(st.lists(st.lists(an_envelope, min_size=1, max_size=30), max_size=4), st.lists(an_envelope, max_size=5))
def test_each_envelope_is_found_with_its_events_and_no_other(
    saves: list[list[tuple[str, int, int]]], others: list[tuple[str, int, int]]
) -> None:
    ledger = Ledger(Path(":memory:"))
    record = SettledRecord(ledger, DAY_S, NOON_US)
    expected: dict[tuple[str, int], int] = {}
    for rows in saves:
        record.add(envelopes(rows), NOON_US, NOON_US)
        for name, at, events in rows:  # one that is there twice has the larger count
            expected[name, at] = max(events, expected.get((name, at), 0))
    asked = [*expected, *((name, at) for name, at, _ in others), ("777", 1 << 60)]
    settled = settled_envelopes(ledger)
    assert settled is not None
    found = settled.events_of(pa.array([name for name, _ in asked], pa.string()), times([at for _, at in asked]))
    assert found.tolist() == [expected.get(each, -1) for each in asked]
    ledger.close()


@given(st.lists(number_ids | other_ids, min_size=1, unique=True))
def test_ids_that_are_numbers_are_their_own_keys_and_no_other_id_has_one_of_those(ids: list[str]) -> None:
    keys = envelope_keys(pa.array(ids))
    assert keys.tolist() == [envelope_key(each) for each in ids]
    assert len(set(keys.tolist())) == len(ids)
    for name, key in zip(ids, keys.tolist(), strict=True):
        is_number = name.isascii() and name.isdigit() and str(int(name)) == name and 0 < int(name) < 10**18
        assert key == int(name) if is_number else key >= 1 << 63


def test_a_lane_says_since_when_and_up_to_when_it_knows_and_forgets_what_is_old(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path)
    assert settled_envelopes(ledger) is None  # a lane that is in order
    record = SettledRecord(ledger, 3_600, NOON_US)
    hour = 3_600_000_000
    for number in range(5):
        now_us = NOON_US + number * hour // 2
        with ledger.writing():
            record.add(envelopes([(str(number + 1), now_us - 7, 1)]), now_us - 5, now_us)
    ledger.close()
    reader = Ledger(path, read_only=True)
    settled = settled_envelopes(reader)
    assert settled is not None
    assert (settled.since_us, settled.until_us) == (NOON_US + hour, NOON_US + 2 * hour - 5)
    assert sorted(settled.envelopes.keys.tolist()) == [3, 4, 5]
    later = settled_envelopes(reader, NOON_US + 3 * hour // 2 - 7, NOON_US + 2 * hour - 7)
    assert later is not None
    assert later.envelopes.keys.tolist() == [4]
    reader.close()
    ledger = Ledger(path)
    SettledRecord(ledger, 3_600, NOON_US + 9 * hour)  # the next run: it knows as much as the one before
    settled = settled_envelopes(ledger)
    assert settled is not None
    assert settled.since_us == NOON_US + hour
    ledger.close()


def test_an_envelope_takes_few_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    size = 2_000  # of 0.2 s at 10,000 messages/s, their ids as far apart as Google's are, one a few hundred µs
    keys = np.cumsum(rng.integers(1, 1 << 14, size)).astype(np.uint64) + np.uint64(16_398_123_456_789_012)
    at = NOON_US + np.sort(rng.integers(0, 200_000, size))
    ledger = Ledger(tmp_path / "ledger")
    SettledRecord(ledger, DAY_S, NOON_US).add(Envelopes(keys, at, np.full(size, 1, np.uint32)), NOON_US, NOON_US)
    (stored,) = ledger.file.execute("SELECT length(envelopes) FROM settled_envelopes").fetchone()
    print(f"{stored / size:.1f} bytes an envelope")
    assert stored / size < 6
    ledger.close()

"""The statistics that the log keeps of a file: never wrong, whatever the values are."""

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.sinks.parquet import STATISTICS_CHARACTERS, delta_statistics, round_up

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=100) | st.text(
    st.sampled_from(["a", "\ud7ff", "\ue000", "\U0010ffff", "\U0010fffe", "\0", "é"]), min_size=60, max_size=70
)
_MOMENTS = st.datetimes(dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30)).map(lambda at: at.replace(tzinfo=dt.UTC))
_LONGS = st.integers(-(2**63), 2**63 - 1)


def _statistics(columns: dict[str, pa.Array], row_group_size: int = 3) -> dict[str, dict[str, Any]]:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, row_group_size=row_group_size)
    found = json.loads(delta_statistics(pq.read_metadata(pa.BufferReader(sink.getvalue())), list(columns)))
    assert found.pop("numRecords") == len(next(iter(columns.values())))
    return found  # type: ignore[no-any-return]


@given(st.lists(_TEXT | st.none(), min_size=1, max_size=9))
@settings(max_examples=300)
def test_text_bounds_hold_every_value_and_stay_short(values: list[str | None]) -> None:
    found = _statistics({"text": pa.array(values, pa.string())})
    present = [value for value in values if value is not None]
    assert found["nullCount"] == {"text": len(values) - len(present)}
    if not present:
        assert found["minValues"] == found["maxValues"] == {}
        return
    if "text" not in found["minValues"]:  # no short string is as large: none is better than a wrong one
        assert "text" not in found["maxValues"]
        assert max(present).startswith("\U0010ffff" * STATISTICS_CHARACTERS)
        return
    low, high = found["minValues"]["text"], found["maxValues"]["text"]
    assert len(low) <= STATISTICS_CHARACTERS
    assert len(high) <= STATISTICS_CHARACTERS
    # Delta compares strings by their UTF-8 bytes; Python by code points, which is the same order.
    assert all(low.encode() <= value.encode() <= high.encode() for value in present)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), st.integers(1, 20))
def test_rounding_up_never_makes_a_string_smaller(text: str, characters: int) -> None:
    rounded = round_up(text, characters)
    if rounded is None:
        assert text.startswith("\U0010ffff" * characters)
    else:
        assert rounded >= text
        assert len(rounded) <= characters
        rounded.encode()  # no lone surrogate


@given(st.lists(_MOMENTS | st.none(), min_size=1, max_size=9), st.lists(_LONGS, min_size=1, max_size=9))
def test_times_and_numbers_are_exact(moments: list[dt.datetime | None], longs: list[int]) -> None:
    found = _statistics({"at": pa.array(moments, pa.timestamp("us", tz="UTC"))})
    present = [moment for moment in moments if moment is not None]
    assert found["nullCount"] == {"at": len(moments) - len(present)}
    if present:
        assert dt.datetime.fromisoformat(str(found["minValues"]["at"])) == min(present)
        assert dt.datetime.fromisoformat(str(found["maxValues"]["at"])) == max(present)
    found = _statistics({"n": pa.array(longs, pa.int64())})
    assert (found["minValues"], found["maxValues"]) == ({"n": min(longs)}, {"n": max(longs)})


def test_times_have_the_form_that_delta_wants() -> None:
    moment = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
    found = _statistics({"at": pa.array([moment], pa.timestamp("us", tz="UTC"))})
    assert found["minValues"] == {"at": "2026-03-01T12:00:00.000000Z"}


def test_a_column_of_nulls_has_only_its_null_count() -> None:
    found = _statistics({"text": pa.nulls(5, pa.string())})
    assert found == {"minValues": {}, "maxValues": {}, "nullCount": {"text": 5}}


@pytest.mark.parametrize("size", [4_000, 5_000, 100_000])
def test_a_value_too_long_for_the_footer_leaves_no_wrong_bound(size: int) -> None:
    found = _statistics({"text": pa.array(["a", "z" * size])})
    high = found["maxValues"].get("text")
    assert high is None or str(high) >= "z" * size


def test_columns_not_asked_for_are_left_out(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "f.parquet")
    found = json.loads(delta_statistics(pq.read_metadata(tmp_path / "f.parquet"), ["b"]))
    assert found == {"numRecords": 1, "minValues": {"b": 2}, "maxValues": {"b": 2}, "nullCount": {"b": 0}}

"""Arrow columns of any type that a row may have, for Hypothesis."""

import datetime as dt
import decimal
from typing import Any

import pyarrow as pa
from hypothesis import reject
from hypothesis import strategies as st

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_FLAT: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.bool_(): st.booleans(),
    pa.int8(): st.integers(-(2**7), 2**7 - 1),
    pa.int16(): st.integers(-(2**15), 2**15 - 1),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint8(): st.integers(0, 2**8 - 1),
    pa.uint32(): st.integers(0, 2**32 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.float64(): st.floats(allow_nan=False),
    pa.string(): _TEXT,
    pa.large_string(): _TEXT,
    pa.binary(): st.binary(max_size=20),
    pa.date32(): st.dates(),
    pa.time32("ms"): st.times().map(lambda time: time.replace(microsecond=time.microsecond // 1_000 * 1_000)),
    pa.time64("us"): st.times(),
    pa.timestamp("us", tz="UTC"): st.datetimes(timezones=st.just(dt.UTC)),
    pa.timestamp("us"): st.datetimes(),
    pa.timestamp("ms", tz="UTC"): st.datetimes(timezones=st.just(dt.UTC)).map(
        lambda time: time.replace(microsecond=time.microsecond // 1_000 * 1_000)
    ),
    pa.decimal128(12, 3): st.decimals(-(10**8), 10**8, places=3, allow_nan=False).map(
        lambda number: number.quantize(decimal.Decimal("0.001"))
    ),
}


@st.composite
def kinds(draw: st.DrawFn, depth: int = 2) -> tuple[pa.DataType, st.SearchStrategy[Any]]:
    """A type, and its values; with parts down to a depth."""
    shape = draw(st.sampled_from(["flat"] * 4 + (["list", "struct", "map", "dictionary"] if depth else [])))
    if shape == "flat":
        kind = draw(st.sampled_from(list(_FLAT)))
        return kind, _FLAT[kind]
    if shape == "dictionary":
        return pa.dictionary(pa.int32(), pa.string()), _TEXT
    if shape == "struct":
        parts = draw(st.lists(kinds(depth - 1), min_size=1, max_size=3))
        named = {f"part_{number}": (kind, values) for number, (kind, values) in enumerate(parts)}
        return (
            pa.struct([pa.field(name, kind) for name, (kind, _) in named.items()]),
            st.fixed_dictionaries({name: st.none() | values for name, (_, values) in named.items()}),
        )
    kind, values = draw(kinds(depth - 1))
    if shape == "list":
        return pa.list_(kind), st.lists(st.none() | values, max_size=4)
    return pa.map_(pa.string(), kind), st.dictionaries(_TEXT, st.none() | values, max_size=4)


@st.composite
def columns(draw: st.DrawFn, rows: int | None = None) -> pa.Array:
    """A column, some of its values null; of a slice, sometimes."""
    kind, values = draw(kinds())
    found = pa.array(draw(st.lists(st.none() | values, min_size=rows or 0, max_size=rows)), kind)
    try:
        found.validate(full=True)
    except pa.ArrowInvalid:  # a null struct with a dictionary in it: pyarrow gives it an index that is none
        reject()
    return found if rows is not None else found.slice(draw(st.integers(0, len(found))))

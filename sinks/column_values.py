"""Column values: what an Arrow column holds, as Python objects, the fast way; for sinks that speak row by row.

`to_pylist` makes a scalar of every value first. By way of NumPy a text costs 0.04 us instead of 0.6, a number 0.05
instead of 0.3 (500 rows, two shared cores).
"""

from typing import Any

import numpy as np
import pyarrow as pa


def column_values(column: pa.Array) -> list[Any]:
    """Return a column's values as `to_pylist` does, with maps as dicts.

    >>> column_values(pa.array([1, None, 3]))
    [1, None, 3]

    Raises:
        KeyError: a map has a key twice.
    """
    if column.null_count == len(column):
        return [None] * len(column)
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        texts: list[Any] = column.to_numpy(zero_copy_only=False).tolist()
        return texts
    if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_float64(kind)):
        values: list[Any] = column.to_pylist(maps_as_pydicts="strict")
        return values
    if not column.null_count:
        numbers: list[Any] = column.to_numpy(zero_copy_only=False).tolist()
        return numbers
    numbers = column.fill_null(False if pa.types.is_boolean(kind) else 0).to_numpy(zero_copy_only=False).tolist()
    return [
        value if is_there else None for value, is_there in zip(numbers, column.is_valid().to_numpy(False), strict=True)
    ]


def column_texts(column: pa.Array) -> list[str | None]:
    """Return a column's values as texts: times are RFC 3339 in UTC with microseconds, the rest is as Arrow says it.

    Raises:
        pyarrow.ArrowNotImplementedError: values that have parts: lists, structs.
    """
    if column.type != pa.timestamp("us", tz="UTC"):
        return column_values(column.cast(pa.string()))
    # 0.2 us a value; a datetime that msgspec writes takes 2.7
    times = np.datetime_as_string(column.cast(pa.timestamp("us")).to_numpy(False), unit="us", timezone="UTC")
    return [None if text == "NaT" else text for text in times.tolist()]

"""Route: which events go to which sink, and as what."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from millrace.config.columns import ONLY_PIPELINE, known_columns
from millrace.config.expressions import Expression
from millrace.config.privacy import CONSENT_DENIED
from millrace.sinks.json_rows import JSON, JSON_COLUMNS
from millrace.transforms.consent import blocked

Mask = npt.NDArray[np.bool_]

REST = "rest"
"""The column whose JSON text has an event's `integrations`."""

ALWAYS = ("message_id", "user_key", "released_at", "order_index", REST)
"""What a lane needs of every event, whatever its routes send."""

_HASHES = 2.0**64


@dataclasses.dataclass(frozen=True)
class Route:
    """A way from the events to a sink. Of the routes to one sink, an event takes the first that it fits.

    Attributes:
        name: of this route; the sink's where it has none of its own.
        to: the sink's name.
        when: which events; None: all.
        columns: (column, its name at the sink), in order; empty: every column, as it is called.
        sample: the part of the users (or events) that takes it, from above 0 to 1.
        sample_by: user or event: by whose hash the part is chosen.
        rate: the most events a second; the rest waits; None: no bound.
        is_ordered: each user's true order, from the archive; else as they come, from the subscription.
        target: a topic, a table, a path ... where the sink has several.
        consent: the categories that an event's user must not have denied.
        strategy: `and`: all of them are needed; `or`: one is enough (transforms.consent.blocked).
    """

    name: str
    to: str
    when: Expression | None = None
    columns: tuple[tuple[str, str], ...] = ()
    sample: float = 1.0
    sample_by: str = "user"
    rate: float | None = None
    is_ordered: bool = True
    target: str = ""
    consent: tuple[str, ...] = ()
    strategy: str = "and"


def route_rows(batch: pa.RecordBatch, routes: Sequence[Route]) -> npt.NDArray[np.int16]:
    """Say which route each row takes: -1 none, else the first that it fits, as its index.

    Args:
        batch: columns of the archive, or of decoded events; those of `columns_for` are enough. Without consent_denied
            nobody has denied anything.
        routes: to one sink.
    """
    taken = np.full(batch.num_rows, -1, np.int16)
    free = _integrated(batch, routes[0].to) if routes else np.zeros(batch.num_rows, np.bool_)
    for number, route in enumerate(routes):
        fits = free
        if route.consent and CONSENT_DENIED.name in batch.schema.names:
            fits = fits & ~blocked(batch, route.consent, route.strategy)
        if route.sample < 1:
            fits = fits & (shares(batch, route.sample_by) < route.sample)
        if route.when is not None:
            fits = _selected(batch, route.when, fits)
        taken[fits] = number
        free = free & ~fits
        if not free.any():
            break
    return taken


def rows_for(batch: pa.RecordBatch, route: Route) -> pa.RecordBatch:
    """Return rows as a route sends them: its columns, under its names, in its order.

    Fields of JSON text have the metadata sinks.json_rows.JSON. A column that the batch lacks is null.

    Args:
        batch: the rows that take the route.
        route: it.
    """
    names = batch.schema.names
    chosen = route.columns or [(name, name) for name in names if name not in ONLY_PIPELINE]
    arrays, fields = [], []
    for column, name in chosen:
        array = batch.column(column) if column in names else pa.nulls(batch.num_rows, _type_of(column))
        arrays.append(array)
        fields.append(pa.field(name, array.type, metadata=JSON if column in JSON_COLUMNS else None))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def columns_for(routes: Sequence[Route], there: Sequence[str]) -> list[str]:
    """Return which columns have to be read so that some routes can be taken and sent.

    Args:
        routes: of a lane.
        there: the columns that there are; the answer is in their order.
    """
    if any(not route.columns for route in routes):
        return list(there)
    needed = {*ALWAYS, *(column for route in routes for column, _ in route.columns)}
    needed |= {column for route in routes if route.when is not None for column in route.when.columns}
    if any(route.consent for route in routes):
        needed.add(CONSENT_DENIED.name)
    return [name for name in there if name in needed]


def shares(batch: pa.RecordBatch, by: str) -> npt.NDArray[np.float64]:
    """Return where in [0, 1) each row's user, or event, stands: below a route's `sample` it is in.

    By xxh3 of user_key or message_id alone: the same in every process, for every route, whatever the share; so a larger
    share keeps those that were in, and two routes with the same share have the same users.
    """
    if by == "event":
        return _hashed(batch.column("message_id")) / _HASHES
    users = pc.dictionary_encode(batch.column("user_key"))
    standing: npt.NDArray[np.float64] = (_hashed(users.dictionary) / _HASHES)[users.indices.to_numpy()]
    return standing


def integration(text: str, sink: str) -> tuple[bool, str]:
    """Say whether an event's `integrations` let it go to a sink, and why, in words.

    Segment's rules: what is `false` is not sent, what is `true` or an object is, even where `All` is false; `All` is
    true where nothing says otherwise. Names are compared without regard to case; where several fit, one `false` counts.
    Anything else says nothing.

    Args:
        text: JSON of the column `rest`.
        sink: its name.

    >>> integration('{"integrations":{"All":false,"CRM":{"list":7}}}', "crm")
    (True, 'CRM is an object, which allows it')
    """
    flags = _flags(text)
    own = [(name, flag) for name, flag in flags if name.lower() == sink.lower()]
    every = [(name, flag) for name, flag in flags if name.lower() == "all"]
    for name, flag in sorted(own, key=_refusals_first):
        return (False, f"{name} is false") if flag is False else (True, f"{name} is {_shown(flag)}, which allows it")
    if any(flag is False for _, flag in every):
        return False, f"All is false, and {sink} is not named"
    return True, "nothing is said against it"


def _integrated(batch: pa.RecordBatch, sink: str) -> Mask:
    """Say which rows' `integrations` allow a sink; each distinct text is read once."""
    allowed = np.ones(batch.num_rows, np.bool_)
    at = batch.schema.get_field_index(REST)
    if at < 0 or batch.column(at).null_count == batch.num_rows:
        return allowed
    rest = batch.column(at)
    speaks = pc.match_substring(rest, '"integrations"')
    odd = pc.match_substring(rest, "\\u00")  # a key may be spelled with escapes
    rows = np.flatnonzero(pc.fill_null(pc.or_(speaks, odd), False))
    if len(rows):
        texts = pc.dictionary_encode(rest.take(pa.array(rows)))
        verdicts = np.array([integration(text, sink)[0] for text in texts.dictionary.to_pylist()], np.bool_)
        allowed[rows] = verdicts[texts.indices.to_numpy()]
    return allowed


class _Rest(msgspec.Struct, gc=False):
    integrations: Any = None


_rest = msgspec.json.Decoder(_Rest).decode


def _flags(text: str) -> list[tuple[str, Any]]:
    try:
        said = _rest(text).integrations
    except (msgspec.DecodeError, RecursionError):
        return []
    return [(n, flag) for n, flag in said.items() if isinstance(flag, bool | dict)] if isinstance(said, dict) else []


def _refusals_first(named: tuple[str, Any]) -> bool:
    return named[1] is not False


def _shown(flag: Any) -> str:
    return "true" if flag is True else "an object"


def _selected(batch: pa.RecordBatch, when: Expression, fits: Mask) -> Mask:
    """Return which of the rows that fit so far are selected, too."""
    rows = np.flatnonzero(fits)
    if not len(rows):
        return fits
    looked_at = [name for name in when.columns if name in batch.schema.names]
    part = batch.select(looked_at or batch.schema.names[:1])
    if len(rows) < batch.num_rows:
        part = part.take(pa.array(rows))
    found = np.zeros(batch.num_rows, np.bool_)
    found[rows] = when.mask(part).to_numpy(zero_copy_only=False)
    return found


def _hashed(texts: pa.Array) -> npt.NDArray[np.float64]:
    digest = xxhash.xxh3_64_intdigest
    return np.array([digest(text) for text in _bytes(texts)], np.uint64).astype(np.float64)


def _bytes(texts: pa.Array) -> Iterator[memoryview]:
    """Give the bytes of texts without nulls as slices of their one buffer: no Python object holds a text."""
    texts = texts.cast(pa.binary())
    _, offsets, data = texts.buffers()
    if not len(texts) or data is None:
        return iter([memoryview(b"")] * len(texts))
    ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1].tolist()
    view = memoryview(data)
    return (view[start:end] for start, end in itertools.pairwise(ends))


@functools.cache
def _type_of(column: str) -> pa.DataType:
    """Return the type of a column that a batch lacks; of a user's own, which it is cannot be known: text."""
    known = known_columns()
    return known.field(column).type if column in known.names else pa.string()

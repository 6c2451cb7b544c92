"""Contexts: what SDKs say of the circumstances, the same for many events: each distinct text is read once.

The text of a context is looked up; one that is new is parsed, and its columns are added to those known already. A
batch's columns are then taken from these, row by row, by Arrow (docs/decisions/0002-parse-each-context-once.md).
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millrace.schemas import wire
from millrace.schemas.dead_letter import Reason, Rejected
from millrace.transforms.check import MAX_DEPTH, check_value
from millrace.transforms.members import KNOWN, encode, is_empty, members_of, read_members, split_members
from millrace.transforms.rest import CHUNK, Column, is_absent, join, refused, rest_texts, strings, transpose

MAX_CONTEXTS = 8_192
MAX_CONTEXT_BYTES = 4 * 1024 * 1024
"""Of their texts. Past either, all are forgotten before the next rows are read: so these texts, their columns and the
index weigh some 12 MiB at the most (the columns about as much as the texts), besides what the last rows brought."""

_ABSENT = b"null"
_REST = wire.keys(wire.Context, columns=False)
_TEXTS = [name for name in wire.keys(wire.Context, columns=True) if name not in wire.CONTEXT_OBJECTS]
_OBJECTS = [
    (name, kind, kind(), wire.keys(kind, columns=True), wire.keys(kind, columns=False))
    for name, kind in wire.CONTEXT_OBJECTS.items()
]
_KINDS: dict[str, type[msgspec.Struct]] = {"": wire.Context, **wire.CONTEXT_OBJECTS}
_EMPTY = wire.Context()


class _Open(wire.Context, gc=False, forbid_unknown_fields=False):
    """A context with members that are not listed; the objects in it are as listed."""


class _Event(msgspec.Struct):
    """What makes msgspec name a field of the context by its whole path."""

    context: wire.Context


_strict: Callable[[bytes], wire.Context | None] = msgspec.json.Decoder(wire.Context | None).decode
_strict_all: Callable[[bytes], list[wire.Context | None]] = msgspec.json.Decoder(list[wire.Context | None]).decode
_open = msgspec.json.Decoder(_Open).decode
_event = msgspec.json.Decoder(_Event).decode


class Spread(NamedTuple):
    """The columns of the contexts of some events."""

    columns: dict[str, pa.Array]
    """context_*, context_rest among them."""
    refused: npt.NDArray[np.bool_]
    """Rows whose context may not go on; these want a closer look (transforms/rescue.py)."""


class Contexts:
    """Contexts that were read lately. Not for use by several threads."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._bytes = 0
        self._rejected: dict[int, Rejected] = {}
        self._pieces: list[dict[str, pa.Array]] = []  # columns of the contexts, by number, in one piece or more
        self._refused = np.zeros(0, np.bool_)
        self._forget_new()

    def _forget_new(self) -> None:
        self._new = 0  # contexts that are read, and not yet among the pieces
        self._fields: dict[str, list[list[Any]]] = {
            name: [[] for _ in kind.__struct_fields__] for name, kind in _KINDS.items()
        }
        self._extras: dict[int, bytes | None] = {}  # by position in the fields

    def check(self, text: bytes) -> None:
        """Refuse a text that is no context.

        Raises:
            Rejected: NOT_AN_EVENT, with the path of the field; NUMBER_OUT_OF_RANGE, TOO_DEEP.
        """
        if text not in self._numbers:
            self._add([text])
        rejected = self._rejected.get(self._numbers[text])
        if rejected:
            raise Rejected(rejected.reason, rejected.message)  # anew: a raised one would keep its traceback here

    def spread(self, contexts: Sequence[wire.Json]) -> Spread:
        """Return the columns of events by the contexts that they have."""
        if len(self._numbers) > MAX_CONTEXTS or self._bytes > MAX_CONTEXT_BYTES:
            self._forget()
        size = len(contexts)
        texts = [_ABSENT if context is None else bytes(context) for context in contexts]
        numbers = list(map(self._numbers.get, texts))
        if None in numbers:
            self._add(list(dict.fromkeys(text for text, number in zip(texts, numbers, strict=True) if number is None)))
            numbers = list(map(self._numbers.get, texts))
        rows = np.array(numbers, np.int32)
        new = self._tabulate()
        known = len(self._refused)
        if new == size and (rows == np.arange(known - size, known)).all():  # no two alike, none known before
            return Spread(dict(self._pieces[-1]), self._refused[-size:])
        take = pa.array(rows)
        nulls = pa.nulls(size, pa.string())
        columns = {
            name: nulls if column.null_count == len(column) else pc.take(column, take, boundscheck=False)
            for name, column in self._known().items()
        }
        return Spread(columns, self._refused[rows])

    def _add(self, texts: Sequence[bytes]) -> None:
        """Read texts that are new, no two of them alike."""
        for start in range(0, len(texts), CHUNK):  # few at a time: still in the processor's cache when taken apart
            new = texts[start : start + CHUNK]
            try:
                contexts = _strict_all(b"[%b]" % b",".join(new))
            except (msgspec.ValidationError, RecursionError):
                contexts = [self._read(text, position) for position, text in enumerate(new)]
            self._numbers.update(zip(new, itertools.count(len(self._numbers))))
            self._bytes += sum(map(len, new))
            self._keep([context or _EMPTY for context in contexts])

    def _read(self, text: bytes, position: int) -> wire.Context | None:
        try:
            return _strict(text)
        except (msgspec.ValidationError, RecursionError):
            pass
        try:
            context, self._extras[self._new + position] = _read_with_care(text)
        except Rejected as rejected:
            self._rejected[len(self._numbers) + position] = rejected
            return None
        return context

    def _keep(self, contexts: Sequence[wire.Context]) -> None:
        self._new += len(contexts)
        fields = transpose(wire.Context, contexts)
        for column, values in zip(self._fields[""], fields.values(), strict=True):
            column.extend(values)
        for name, kind, empty, _, _ in _OBJECTS:
            inner = [empty if value is None else value for value in fields[name]]
            for column, values in zip(self._fields[name], transpose(kind, inner).values(), strict=True):
                column.extend(values)

    def _known(self) -> dict[str, pa.Array]:
        """Return the columns of all contexts, in one piece."""
        if len(self._pieces) > 1:
            self._pieces = [{name: _joined([piece[name] for piece in self._pieces]) for name in self._pieces[0]}]
        return self._pieces[0]

    def _tabulate(self) -> int:
        """Make columns of the contexts that are new; return how many these are."""
        size = self._new
        if not size:
            return 0
        new, rest = _context_columns(self._fields, size)
        rest = rest_texts(rest, self._extras, {})
        new["context_rest"] = strings(rest)
        wrong = np.zeros(size, np.bool_)
        wrong[refused(rest, MAX_DEPTH - 1)] = True
        wrong[[number - len(self._refused) for number in self._rejected if number >= len(self._refused)]] = True
        self._pieces.append(new)
        self._refused = np.concatenate([self._refused, wrong])
        self._forget_new()
        return size


def _read_with_care(text: bytes) -> tuple[wire.Context, bytes | None]:
    """Read a context that is not as listed; return it, and what is not listed as JSON object text.

    Raises:
        Rejected: as Contexts.check.
    """
    try:
        context: wire.Context = _open(text)
    except (msgspec.ValidationError, RecursionError):
        pass
    else:
        unlisted = {key: value for key, value in read_members(text).items() if key not in KNOWN["context"]}
        return context, encode(unlisted) if unlisted else None
    check_value(text, MAX_DEPTH - 1)
    try:
        members = {} if is_empty(text) else members_of(text, "context")
        rest = split_members(members, "context")
        context = _event(b'{"context":%b}' % encode(members)).context
    except msgspec.ValidationError as error:
        raise Rejected(Reason.NOT_AN_EVENT, str(error)) from error
    return context, encode(rest) if rest else None


def _context_columns(fields: Mapping[str, list[list[Any]]], size: int) -> tuple[dict[str, pa.Array], Column]:
    """Return the context_* columns, and the members of what has none."""
    own = dict(zip(wire.Context.__struct_fields__, fields[""], strict=True))
    columns = {f"context_{name}": strings(own[name]) for name in _TEXTS}
    rests: dict[str, Column] = {name: own[name] for name in _REST}
    keys = dict(_REST)
    for name, kind, _, told, untold in _OBJECTS:
        members = dict(zip(kind.__struct_fields__, fields[name], strict=True))
        columns |= {f"context_{name}_{attribute}": strings(members[attribute]) for attribute in told}
        inner = join(untold, members, size)
        if not is_absent(inner):
            keys[name] = name
            rests[name] = inner
    return columns, join(keys, rests, size)


def _joined(pieces: Sequence[pa.Array]) -> pa.Array:
    if all(piece.null_count == len(piece) for piece in pieces):
        return pa.nulls(sum(map(len, pieces)), pa.string())
    return pa.concat_arrays(pieces)

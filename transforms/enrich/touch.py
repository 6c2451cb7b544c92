"""Touch: what first brought a user, and what did so last, along the order of their events.

A touch is an event that carries a campaign, a click id, or a referrer that is not of the site itself. The first touch
in the order stays the first, for as long as the user is remembered; the last is the touch that occurred last of those
at or before the event in the order. So an event without one (a direct visit) changes nothing, nor does a late touch
that occurred before the last known one, nor one that comes a second time.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millrace.schemas import avro
from millrace.transforms.batches import concat, int64s, run_starts
from millrace.transforms.enrich.external import external_hosts
from millrace.transforms.order_index import first_index, released_us
from millrace.transforms.steps import Applied, Step, Users, with_columns

FIELDS: Sequence[pa.Field] = tuple(avro.arrow_schema(avro.load("added/touch")))

RECALL_SLACK_S = 3_600.0
"""A new process reads the archive from so much further back, since its next event is no later than its newest row."""

_DAY_US = 86_400_000_000
_CHARACTERS = 200
_NEVER = np.iinfo(np.int64).min
_VALUES = ("at", "source", "medium", "campaign", "referrer")
_SCHEMA = pa.schema([(name, pa.int64() if name == "at" else pa.string()) for name in _VALUES])
_TIME = FIELDS[0].type
_NOT_EXTERNAL = "internal"


class _Touch(msgspec.Struct, array_like=True, gc=False, frozen=True):
    at: int
    """occurred_at, µs since the epoch."""
    source: str | None
    medium: str | None
    campaign: str | None
    referrer: str | None


class _Memory(msgspec.Struct, array_like=True, gc=False):
    """What is remembered of a user who has had a touch."""

    seen: int
    """order_index of their last event."""
    first: _Touch
    last: _Touch | None
    """None: the first."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Memory).decode


@dataclasses.dataclass(frozen=True)
class Touch(Step):
    """Say of each event what brought its user, first and last.

    Attributes:
        source, medium, campaign: columns, of which the first that the event has one of counts; those that a batch lacks
            are passed over.
        click: columns whose presence alone makes a touch: click ids.
        referrer_class: columns that say "internal" of a referrer which is none.
        internal_hosts: whose pages, and whose subdomains' pages, are the site's own beside the page's own host.
        remember_days: a user is remembered so long after the release of their last event.
        remember_users: of each shard, at most, of those who had a touch; the least recently seen are forgotten first.

    State: of users who had a touch: two touches at most, their texts cut to 200 characters.
    """

    source: tuple[str, ...] = ("campaign_source", "context_campaign_source")
    medium: tuple[str, ...] = ("campaign_medium", "context_campaign_medium")
    campaign: tuple[str, ...] = ("campaign_name", "context_campaign_name")
    click: tuple[str, ...] = ("click_id",)
    referrer_class: tuple[str, ...] = ("referrer_class",)
    internal_hosts: tuple[str, ...] = ()
    remember_days: float = 30.0
    remember_users: int = 200_000

    name = "touch"
    adds = FIELDS
    recalls = tuple(field.name for field in FIELDS)

    @property
    def remembers_s(self) -> float:  # type: ignore[override]
        """As Step says."""
        return self.remember_days * 86_400 + RECALL_SLACK_S

    def apply(self, batch: pa.RecordBatch, users: Users) -> Applied:
        """Tell the touches of each event of a batch, and remember them for its users."""
        if not batch.num_rows:
            return Applied(with_columns(batch, FIELDS, [pa.nulls(0, field.type) for field in FIELDS]))
        runs = _Runs(batch, users, round(self.remember_days * _DAY_US))
        carried = self._carried(batch)
        rows = np.flatnonzero(carried.is_touch & (runs.order_index > runs.seen[runs.user]))
        told = carried.values.take(pa.array(rows))
        first, last = _along(runs, rows)
        known = concat([told, runs.remembered]) if runs.remembered.num_rows else told
        columns = [*_taken(known, first), *_taken(known, last)]
        self._keep(runs, told, first, last, users)
        return Applied(with_columns(batch, FIELDS, columns))

    def recall(self, batch: pa.RecordBatch, users: Users) -> None:
        """Remember what the last row of each user tells."""
        starts = run_starts(batch.column("user_key"))
        last = batch.take(pa.array(np.append(starts, batch.num_rows)[1:] - 1))
        last = last.filter(last.column("first_touch_at").is_valid())
        keys, seen = last.column("user_key").to_pylist(), last.column("order_index").to_pylist()
        columns = [last.column(field.name) for field in FIELDS]
        values = [(column.cast(pa.int64()) if column.type == _TIME else column).to_pylist() for column in columns]
        for key, order_index, *touches in zip(keys, seen, *values, strict=True):
            first, newest = _Touch(*touches[: len(_VALUES)]), _Touch(*touches[len(_VALUES) :])
            memory = _Memory(order_index, first, None if newest == first else newest)
            users.put(key, _encode(memory), released_us(order_index))
        users.trim(self.remember_users)

    def _carried(self, batch: pa.RecordBatch) -> "_Carried":
        internal = np.zeros(batch.num_rows, np.bool_)
        for name in self.referrer_class:
            if name in batch.schema.names:
                internal |= pc.equal(batch.column(name), _NOT_EXTERNAL).fill_null(False).to_numpy(zero_copy_only=False)
        hosts = external_hosts(
            batch.column("context_page_referrer"), batch.column("context_page_url"), self.internal_hosts
        )
        if internal.any():
            hosts = pc.if_else(pa.array(internal), None, hosts)
        texts = [_first_of(batch, names) for names in (self.source, self.medium, self.campaign)]
        is_touch = np.zeros(batch.num_rows, np.bool_)
        for column in (*texts, _first_of(batch, self.click), hosts):
            if column.null_count < len(column):
                is_touch |= column.is_valid().to_numpy(zero_copy_only=False)
        values = [batch.column("occurred_at").cast(pa.int64()), *map(_cut, (*texts, hosts))]
        return _Carried(is_touch, pa.RecordBatch.from_arrays(values, schema=_SCHEMA))

    def _keep(self, runs: "_Runs", told: pa.RecordBatch, first: "_Rows", last: "_Rows", users: Users) -> None:
        """Remember each user who has had a touch as they stand at their last row."""
        of_users = np.flatnonzero(last[runs.ends - 1] >= 0)
        rows = runs.ends[of_users] - 1
        both = np.concatenate([first[rows], last[rows]])
        new, place = np.unique(both[both < told.num_rows], return_inverse=True)
        wanted = told.take(pa.array(new))
        touches = [_Touch(*row) for row in zip(*(column.to_pylist() for column in wanted.columns), strict=True)]
        place_of = np.where(both < told.num_rows, 0, both - told.num_rows + len(touches))
        place_of[both < told.num_rows] = place
        touches += runs.touches
        count = len(of_users)
        columns = (of_users, place_of[:count], place_of[count:], runs.order_index[rows])
        for user, begun, ended, seen in zip(*(column.tolist() for column in columns), strict=True):
            memory = _Memory(seen, touches[begun], None if ended == begun else touches[ended])
            users.put(runs.keys[user], _encode(memory), released_us(seen))
        users.trim(self.remember_users)


_Rows = npt.NDArray[np.int64]


class _Carried(NamedTuple):
    """What each event of a batch carries, and whether this makes it a touch."""

    is_touch: npt.NDArray[np.bool_]
    values: pa.RecordBatch


class _Runs:
    """The users of a batch: their rows, and what is remembered of them."""

    def __init__(self, batch: pa.RecordBatch, users: Users, keep_us: int) -> None:
        self.order_index = int64s(batch.column("order_index"))
        self.at_us = int64s(batch.column("occurred_at"))
        self.starts = run_starts(batch.column("user_key"))
        self.ends = np.append(self.starts, batch.num_rows)[1:]
        self.keys: list[str] = batch.column("user_key").take(pa.array(self.starts)).to_pylist()
        self.user = np.repeat(np.arange(len(self.starts)), self.ends - self.starts)
        """Of each row, the number of its user."""
        past = (self.order_index[self.starts] - first_index(keep_us)).tolist()
        self.touches: list[_Touch] = []
        touches, nothing = self.touches, (_NEVER, _NEVER, -1, -1)
        known: list[tuple[int, int, int, int]] = []
        for user, key in enumerate(self.keys):
            encoded = users.get(key)
            memory = None if encoded is None else _decode(encoded)
            # Not when it is swept, which a restart would change, but by the events' own time.
            if memory is None or memory.seen < past[user]:
                known.append(nothing)
                continue
            first = last = len(touches)
            touches.append(memory.first)
            if memory.last is not None:
                last += 1
                touches.append(memory.last)
            known.append((memory.seen, touches[-1].at, first, last))
        self.seen, self.last_us, self.first, self.last = np.array(known, np.int64).reshape(-1, 4).T
        """Of each user: the last order_index, the last touch's time, both touches' rows in `remembered`; -1: none."""
        told = [
            [touch.at for touch in touches],
            [touch.source for touch in touches],
            [touch.medium for touch in touches],
            [touch.campaign for touch in touches],
            [touch.referrer for touch in touches],
        ]
        arrays = [pa.array(values, field.type) for values, field in zip(told, _SCHEMA, strict=True)]
        self.remembered = pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)


def _along(runs: _Runs, touches: _Rows) -> tuple[_Rows, _Rows]:
    """Return for each row its first and last touch: numbers of `touches`, then of what is remembered; -1 for none.

    Args:
        runs: the users.
        touches: the rows that are touches, in order.
    """
    size = len(runs.user)
    user, at_us = runs.user[touches], runs.at_us[touches]
    number = np.full(size, -1)
    number[touches] = np.arange(len(touches))
    first = _carried_on(number, runs, touches[np.flatnonzero(np.diff(user, prepend=-1))])
    # One becomes the last only if it occurred after all before it: a maximum that starts anew with each user, whose
    # numbers rise.
    rank = np.unique(at_us, return_inverse=True)[1] + user * (len(at_us) + 1) + 1
    newest = np.maximum.accumulate(rank) if len(rank) else rank
    wins = (np.diff(newest, prepend=0) > 0) & (at_us > runs.last_us[user])
    last = _carried_on(number, runs, touches[wins])
    remembered = runs.first[runs.user]
    first = np.where(remembered >= 0, remembered + len(touches), first)
    remembered = runs.last[runs.user]
    last = np.where((last < 0) & (remembered >= 0), remembered + len(touches), last)
    return first, last


def _carried_on(number: _Rows, runs: _Runs, rows: _Rows) -> _Rows:
    """Return for each row the number of the nearest of `rows` at or before it, of the same user; -1 for none."""
    nearest = np.full(len(number), -1)
    nearest[rows] = rows
    nearest = np.maximum.accumulate(nearest)
    return np.where(nearest >= runs.starts[runs.user], number[nearest], -1)


def _taken(known: pa.RecordBatch, rows: _Rows) -> list[pa.Array]:
    """Return the columns of touches, for each row; null where it has none."""
    if not (rows >= 0).any():
        return [pa.nulls(len(rows), _TIME), *(pa.nulls(len(rows), pa.string()) for _ in _VALUES[1:])]
    take = pa.array(rows, mask=rows < 0)
    nulls = pa.nulls(len(rows), pa.string())
    texts = [nulls if column.null_count == len(column) else column.take(take) for column in known.columns[1:]]
    return [known.column(0).take(take).cast(_TIME), *texts]


def _first_of(batch: pa.RecordBatch, names: Sequence[str]) -> pa.Array:
    """Return the first text that is not blank, of some columns; those that the batch lacks are passed over."""
    found = [batch.column(name) for name in names if name in batch.schema.names]
    found = [column for column in found if column.null_count < len(column)]
    if not found:
        return pa.nulls(batch.num_rows, pa.string())
    found = [_without_blanks(column) for column in found]
    return found[0] if len(found) == 1 else pc.coalesce(*found)


def _without_blanks(texts: pa.Array) -> pa.Array:
    present = texts.drop_null() if texts.null_count else texts
    if not pc.any(pc.equal(pc.utf8_trim_whitespace(present), "")).as_py():
        return texts
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(texts), ""), None, texts)


def _cut(texts: pa.Array) -> pa.Array:
    if texts.null_count == len(texts) or pc.max(pc.binary_length(texts)).as_py() <= _CHARACTERS:
        return texts
    return pc.utf8_slice_codeunits(texts, 0, _CHARACTERS)

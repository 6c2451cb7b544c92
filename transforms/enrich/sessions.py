"""Sessions: a user's events fall into sessions by inactivity, or as the SDK says, along their order.

A session is open from its start until `gap` after its latest event, and for no longer than `longest`. An event belongs
to that of the remembered sessions, open at its time, which started last; else it opens one. Where the SDK sent an id
(context.sessionId), this alone decides. Nothing that was once said of a session changes: its start stays, its
end only moves on, two never become one. So events that came late, or come again, find what they would have found.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from millrace.schemas import avro
from millrace.transforms.batches import int64s, run_starts
from millrace.transforms.enrich.sdk_sessions import NO_ID, sdk_ids
from millrace.transforms.order import released_us
from millrace.transforms.steps import Applied, Step, Users, with_columns

FIELDS: Sequence[pa.Field] = tuple(avro.arrow_schema(avro.load("added/sessions")))

SESSIONS_REMEMBERED = 3
"""Of each user, those that an event belonged to most lately: the current one, the one before, one that came late."""

RECALL_SLACK_S = 3_600.0
"""A new process reads the archive from so much further back, since its next event is no later than its newest row."""

_MINUTE_US = 60_000_000
_DAY_US = 86_400_000_000
_BY = pa.array(["gap", "late", "sdk"])
_GAP, _LATE, _SDK = range(3)
_TIME = FIELDS[2].type


class _Session(msgspec.Struct, array_like=True, gc=False):
    """One session of a user. Times in µs since the epoch."""

    start: int
    end: int
    """occurred_at of the latest event in it."""
    index: int | None
    touched: int
    """order_index of the event that was put into it last."""
    by: int
    sdk: str = ""
    """The SDK's id; empty: none."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[_Session]).decode


@dataclasses.dataclass(frozen=True)
class Sessions(Step):
    """Say of each event which session it belongs to.

    Attributes:
        gap_min: without an event for longer than so many minutes a session is over.
        longest_h: and once it has lasted so many hours.
        respect_sdk: events with context.sessionId belong to the session of that id.
        remember_days: a user's sessions are remembered so long after the release of their last event; then they are
            counted from 1 again.
        remember_users: of each shard, at most; the least recently seen are forgotten first.

    State: 3 sessions of a user at most.
    """

    gap_min: float = 30.0
    longest_h: float = 24.0
    respect_sdk: bool = True
    remember_days: float = 30.0
    remember_users: int = 200_000

    name = "sessions"
    adds = FIELDS
    recalls = ("session_id", "session_index", "session_start", "session_by", "occurred_at")

    @property
    def remembers_s(self) -> float:  # type: ignore[override]
        """As Step says."""
        return self.remember_days * 86_400 + RECALL_SLACK_S

    def apply(self, batch: pa.RecordBatch, users: Users) -> Applied:
        """Place each event of a batch, and remember the sessions of its users."""
        columns = _Columns(batch, self.respect_sdk, round(self.gap_min * _MINUTE_US))
        placed = _Placed()
        for user in columns.users():
            remembered = users.get(user.key)
            sessions = [] if remembered is None else self._in_force(_decode(remembered), user.released_us)
            mine = _User(user.key, sessions, self)
            for first, end in user.stretches:
                for place in mine.place(columns, first, end):
                    placed.add(*place)
            if mine.sessions:
                users.put(user.key, _encode(mine.sessions), user.last_released_us)
        users.trim(self.remember_users)
        return Applied(with_columns(batch, FIELDS, placed.columns()))

    def recall(self, batch: pa.RecordBatch, users: Users) -> None:
        """Remember the sessions that archived rows tell of."""
        rows = pa.Table.from_batches([batch]).filter(pc.field("session_index").is_valid())
        # The start as well: users that were forgotten count from 1 again.
        grouped = rows.group_by(["user_key", "session_index", "session_start"]).aggregate(
            [("occurred_at", "max"), ("order_index", "max"), ("session_by", "max"), ("session_id", "max")]
        )
        grouped = grouped.sort_by([("user_key", "ascending"), ("order_index_max", "descending")])
        numbers = {by: number for number, by in enumerate(_BY.to_pylist())}
        starts, ends = (grouped.column(name).cast(pa.int64()) for name in ("session_start", "occurred_at_max"))
        names = ("user_key", "session_index", "order_index_max", "session_by_max", "session_id_max")
        told = zip(*(column.to_pylist() for column in (*map(grouped.column, names), starts, ends)), strict=True)
        for key, of_user in itertools.groupby(told, key=lambda session: session[0]):
            newest = [
                _Session(start, end, index, touched, numbers[by], id_ if numbers[by] == _SDK else "")
                for _, index, touched, by, id_, start, end in itertools.islice(of_user, SESSIONS_REMEMBERED)
            ]
            users.put(key, _encode(sorted(newest, key=_newest_start)), released_us(newest[0].touched))
        users.trim(self.remember_users)

    def _in_force(self, sessions: list[_Session], now_us: int) -> list[_Session]:
        """Leave out what is past: not when it is swept, which a restart would change, but by the events' own time."""
        since_us = now_us - round(self.remember_days * _DAY_US)
        if min(released_us(session.touched) for session in sessions) >= since_us:
            return sessions
        return [session for session in sessions if released_us(session.touched) >= since_us]


def _newest_start(session: _Session) -> tuple[int, int]:
    return -session.start, -(session.index or 0)


class _Placing(NamedTuple):
    """So many rows, one after the other, belong to this session."""

    rows: int
    session: _Session
    id: str


class _Run(NamedTuple):
    """One user's rows of a batch, in stretches."""

    key: str
    stretches: Sequence[tuple[int, int]]
    released_us: int
    last_released_us: int


class _Columns:
    """What of a batch decides on sessions.

    A stretch is rows in a row of one user and one SDK id (or none), whose times do not fall and, without an id, never
    leave a gap: so it is placed as one.
    """

    def __init__(self, batch: pa.RecordBatch, respect_sdk: bool, gap_us: int) -> None:
        self.at_us = int64s(batch.column("occurred_at"))
        self.order_index = int64s(batch.column("order_index"))
        self.users_at = run_starts(batch.column("user_key"))
        self.keys = batch.column("user_key").take(pa.array(self.users_at)).to_pylist()
        self.ids, self.texts = np.full(batch.num_rows, NO_ID), list[str]()
        if respect_sdk:
            self.ids, self.texts = sdk_ids(batch.column("context_rest"))
        begins = np.zeros(batch.num_rows, np.bool_)
        begins[self.users_at] = True
        passed = np.diff(self.at_us)
        begins[1:] |= (np.diff(self.ids) != 0) | (passed < 0) | ((passed > gap_us) & (self.ids[1:] == NO_ID))
        self.begins = np.flatnonzero(begins)

    def users(self) -> Iterator[_Run]:
        """Yield each user's rows."""
        size = len(self.at_us)
        begins = self.begins.tolist()
        stretches = list(zip(begins, [*begins, size][1:], strict=True))
        firsts = np.searchsorted(self.begins, self.users_at).tolist()
        ends = [*firsts, len(stretches)][1:]
        released = self.order_index[self.users_at].tolist()
        last = self.order_index[np.append(self.users_at, size)[1:] - 1].tolist()
        for key, first, end, begun, ended in zip(self.keys, firsts, ends, released, last, strict=True):
            yield _Run(key, stretches[first:end], released_us(begun), released_us(ended))


class _User:
    """One user's sessions while a batch passes by."""

    def __init__(self, key: str, sessions: list[_Session], step: Sessions) -> None:
        self.sessions = sessions
        """By their start, the latest first."""
        self._key = key
        self._gap_us = round(step.gap_min * _MINUTE_US)
        self._longest_us = round(step.longest_h * 60 * _MINUTE_US)
        self._seen = max((session.touched for session in sessions), default=-1)

    def place(self, columns: _Columns, first: int, end: int) -> Iterator[_Placing]:
        """Place one stretch of rows; yields more than once where it meets a session's border.

        Rows at or before what was seen come a second time, after a crash: they are told what is known, and change
        nothing.
        """
        sdk = columns.texts[columns.ids[first]] if columns.ids[first] != NO_ID else ""
        while first < end:
            at_us = int(columns.at_us[first])
            cut = end
            again = columns.order_index[first] <= self._seen
            if again and columns.order_index[end - 1] > self._seen:
                cut = first + int(np.searchsorted(columns.order_index[first:end], self._seen, "right"))
            session = self._find(at_us, sdk) or self._open(at_us, sdk, remember=not again)
            if not sdk:
                until_us = self._until(session, at_us)
                if columns.at_us[cut - 1] > until_us:
                    cut = first + int(np.searchsorted(columns.at_us[first:cut], until_us, "right"))
            if not again:
                session.touched = int(columns.order_index[cut - 1])
                session.end = max(session.end, int(columns.at_us[cut - 1]))
            yield _Placing(cut - first, session, session.sdk or _id(self._key, session.start))
            first = cut

    def _find(self, at_us: int, sdk: str) -> _Session | None:
        for session in self.sessions:
            if sdk:
                if session.sdk == sdk:
                    return session
            elif session.start <= at_us <= min(session.end + self._gap_us, session.start + self._longest_us):
                return session
        return None

    def _open(self, at_us: int, sdk: str, *, remember: bool) -> _Session:
        is_late = any(session.start > at_us for session in self.sessions)
        by = _SDK if sdk else _LATE if is_late else _GAP
        if not remember:
            return _Session(at_us, at_us, None, -1, by, sdk)
        index = 1 + max((session.index or 0 for session in self.sessions), default=0)
        opened = _Session(at_us, at_us, index, -1, by, sdk)
        if len(self.sessions) == SESSIONS_REMEMBERED:
            self.sessions.remove(min(self.sessions, key=lambda session: session.touched))
        self.sessions.append(opened)
        self.sessions.sort(key=_newest_start)
        return opened

    def _until(self, session: _Session, at_us: int) -> int:
        """Return until when a stretch that begins in a session stays in it, µs."""
        until_us = session.start + self._longest_us
        return min([until_us, *(other.start - 1 for other in self.sessions if other.start > at_us)])


def _id(user_key: str, start_us: int) -> str:
    return xxhash.xxh3_128_hexdigest(f"{start_us} {user_key}".encode())


class _Placed:
    """Where rows were placed, in their order."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._values: tuple[list[str], list[int | None], list[int], list[int]] = ([], [], [], [])

    def add(self, rows: int, session: _Session, id_: str) -> None:
        self._rows.append(rows)
        ids, indexes, starts, bys = self._values
        ids.append(id_)
        indexes.append(session.index)
        starts.append(session.start)
        bys.append(session.by)

    def columns(self) -> list[pa.Array]:
        """Return the columns of FIELDS."""
        ids, indexes, starts, bys = self._values
        columns = [
            pa.array(ids, pa.string()),
            pa.array(indexes, pa.int64()),
            pa.array(starts, pa.int64()).cast(_TIME),
            _BY.take(pa.array(bys, pa.int64())),
        ]
        rows = np.array(self._rows, np.int64)
        if (rows == 1).all():
            return columns
        take = pa.array(np.repeat(np.arange(len(rows)), rows))
        return [column.take(take) for column in columns]

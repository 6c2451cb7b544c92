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
from millrace.transforms.order_index import first_index, released_us
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
        rules = _Rules(round(self.gap_min * _MINUTE_US), round(self.longest_h * 60 * _MINUTE_US))
        columns = _Columns(batch, rules.gap_us, respect_sdk=self.respect_sdk)
        # What is past is not told by when it was swept, which a restart would change, but by the events' own time.
        kept_for = first_index(round(self.remember_days * _DAY_US))
        placed = _Placed()
        sessions: list[_Session] = []
        now, seen = -1, -1
        # One user at a time, not all of them in a list: so many objects at once would set off the garbage collector.
        for user, first, rows, at_us, until_us, begins, ends, sdk in columns.stretches():
            if user != now:
                columns.keep(now, sessions, users)
                now = user
                sessions, seen = _known(users.get(columns.keys[user]), begins - kept_for)
            if begins > seen:
                session = rules.find(sessions, at_us, sdk) or rules.open(sessions, at_us, sdk)
                if sdk or until_us <= rules.until(session, sessions, at_us):
                    session.touched = ends
                    session.end = max(session.end, until_us)
                    placed.add(user, rows, session)
                    continue
            for part, session in rules.place(sessions, columns, range(first, first + rows), sdk, seen):
                placed.add(user, part, session)
        columns.keep(now, sessions, users)
        users.trim(self.remember_users)
        return Applied(with_columns(batch, FIELDS, placed.columns(columns.keys)))

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


def _newest_start(session: _Session) -> tuple[int, int]:
    return -session.start, -(session.index or 0)


def _known(encoded: bytes | None, past: int) -> tuple[list[_Session], int]:
    """Return the sessions that are not past, and the order_index up to which events are in them."""
    if encoded is None:
        return [], -1
    sessions = _decode(encoded)
    touched = [session.touched for session in sessions]
    if min(touched) < past:
        sessions = [session for session in sessions if session.touched >= past]
    return sessions, max(touched) if sessions else -1


class _Columns:
    """What of a batch decides on sessions, in stretches.

    A stretch is rows in a row of one user and one SDK id (or none), whose times do not fall and, without an id, never
    leave a gap. Most are placed as one.
    """

    def __init__(self, batch: pa.RecordBatch, gap_us: int, *, respect_sdk: bool) -> None:
        self.at_us = int64s(batch.column("occurred_at"))
        self.order_index = int64s(batch.column("order_index"))
        self._users_at = run_starts(batch.column("user_key"))
        self.keys: list[str] = batch.column("user_key").take(pa.array(self._users_at)).to_pylist()
        self._lasts = self.order_index[np.append(self._users_at, batch.num_rows)[1:] - 1].tolist()
        self._ids, self._texts = np.full(batch.num_rows, NO_ID), list[str]()
        if respect_sdk:
            self._ids, self._texts = sdk_ids(batch.column("context_rest"))
        begins = np.zeros(batch.num_rows, np.bool_)
        begins[self._users_at] = True
        passed = np.diff(self.at_us)
        begins[1:] |= (np.diff(self._ids) != 0) | (passed < 0) | ((passed > gap_us) & (self._ids[1:] == NO_ID))
        self._firsts = np.flatnonzero(begins)

    def keep(self, user: int, sessions: list[_Session], users: Users) -> None:
        """Remember a user's sessions."""
        if sessions:
            users.put(self.keys[user], _encode(sessions), released_us(self._lasts[user]))

    def stretches(self) -> Iterator[tuple[int, int, int, int, int, int, int, str]]:
        """Yield of each stretch: user (by number), first row, rows, first and last time and order_index, SDK id."""
        firsts, ends = self._firsts, np.append(self._firsts, len(self.at_us))[1:]
        user = np.searchsorted(self._users_at, firsts, "right") - 1
        numbers = [user, firsts, ends - firsts, self.at_us[firsts], self.at_us[ends - 1]]
        numbers += [self.order_index[firsts], self.order_index[ends - 1]]
        texts = [*self._texts, ""]  # NO_ID is the last
        ids = [texts[number] for number in self._ids[firsts].tolist()]
        return zip(*(column.tolist() for column in numbers), ids, strict=True)


class _Rules(NamedTuple):
    gap_us: int
    longest_us: int

    def find(self, sessions: Sequence[_Session], at_us: int, sdk: str) -> _Session | None:
        """Return the session that an event belongs to; sessions: by their start, the latest first."""
        for session in sessions:
            if sdk:
                if session.sdk == sdk:
                    return session
            elif session.start <= at_us <= session.end + self.gap_us and at_us <= session.start + self.longest_us:
                return session
        return None

    def open(self, sessions: list[_Session], at_us: int, sdk: str) -> _Session:
        """Return a new session, which is now one of those remembered."""
        is_late = bool(sessions) and sessions[0].start > at_us
        index = 1 + max([session.index or 0 for session in sessions], default=0)
        opened = _Session(at_us, at_us, index, -1, _SDK if sdk else _LATE if is_late else _GAP, sdk)
        if len(sessions) == SESSIONS_REMEMBERED:
            sessions.remove(min(sessions, key=_touched))
        sessions.append(opened)
        sessions.sort(key=_newest_start)
        return opened

    def until(self, session: _Session, sessions: Sequence[_Session], at_us: int) -> int:
        """Return until when what begins in a session stays in it, µs."""
        until_us = session.start + self.longest_us
        if session is sessions[0]:
            return until_us
        return min([until_us, *(other.start - 1 for other in sessions if other.start > at_us)])

    def place(
        self, sessions: list[_Session], columns: _Columns, rows: range, sdk: str, seen: int
    ) -> Iterator[tuple[int, _Session]]:
        """Place a stretch that meets a border: yields how many rows belong to which session.

        Rows at or before what was seen (an order_index) come a second time, after a crash: they are told what is
        known, and change nothing.
        """
        first, end = rows.start, rows.stop
        while first < end:
            at_us, cut = int(columns.at_us[first]), end
            again = bool(columns.order_index[first] <= seen)
            if again:
                cut = first + int(np.searchsorted(columns.order_index[first:end], seen, "right"))
            among = sessions.copy() if again else sessions
            session = self.find(among, at_us, sdk)
            if session is None:
                session = self.open(among, at_us, sdk)
                session.index = None if again else session.index
            if not sdk:
                until_us = self.until(session, among, at_us)
                cut = first + int(np.searchsorted(columns.at_us[first:cut], until_us, "right"))
            if not again:
                session.touched = int(columns.order_index[cut - 1])
                session.end = max(session.end, int(columns.at_us[cut - 1]))
            yield cut - first, session
            first = cut


def _touched(session: _Session) -> int:
    return session.touched


class _Placed:
    """Where stretches were placed, in their order."""

    def __init__(self) -> None:
        self._users: list[int] = []
        self._rows: list[int] = []
        self._sessions: list[_Session] = []

    def add(self, user: int, rows: int, session: _Session) -> None:
        self._users.append(user)
        self._rows.append(rows)
        self._sessions.append(session)

    def columns(self, keys: Sequence[str]) -> list[pa.Array]:
        """Return the columns of FIELDS."""
        each = self._sessions
        ids = [session.sdk or _id(keys[user], session.start) for user, session in zip(self._users, each, strict=True)]
        columns = [
            pa.array(ids, pa.string()),
            pa.array([session.index for session in each], pa.int64()),
            pa.array([session.start for session in each], pa.int64()).cast(_TIME),
            _BY.take(pa.array([session.by for session in each], pa.int64())),
        ]
        rows = np.array(self._rows, np.int64)
        if (rows == 1).all():
            return columns
        take = pa.array(np.repeat(np.arange(len(rows)), rows))
        return [column.take(take) for column in columns]


def _id(user_key: str, start_us: int) -> str:
    return xxhash.xxh3_128_hexdigest(f"{start_us} {user_key}".encode())

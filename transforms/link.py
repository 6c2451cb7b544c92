"""Links: which events say that two ids are one person, and whose sequence an id belongs to at a time.

A link is an identify with both ids, or an alias. It is in force from its release time on, so the key of an event is
known from the links released up to it: it depends on what was sent, not on how it came.
"""

import bisect
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from millrace.transforms.batches import int64s

IDENTIFY, ALIAS = "identify", "alias"

_DAY_US = 86_400_000_000
_HISTORY_US = 3_600_000_000
"""For how long before its last link an id's older ones are kept: windows may be resolved out of turn by minutes."""


@dataclasses.dataclass(frozen=True)
class LinkRule:
    """Which events link, and for how long a link is in force."""

    link_on: tuple[str, ...] = (IDENTIFY, ALIAS)
    remember_s: float = 365 * 86_400.0
    """After the last link that names an id, give or take half of it."""


class Link(NamedTuple):
    """One event that says: this id is that user's. They sort in the order in which they take effect."""

    at_us: int
    """released_at."""
    id: str
    user_id: str
    message_id: str
    source_id: str
    envelope_id: str
    envelope_index: int
    kind: str
    occurred_us: int


class Change(NamedTuple):
    """What a link did to one id."""

    id: str
    user_id: str
    user_key: str
    link: Link


class Entry(NamedTuple):
    """Whose an id is from a time on."""

    at_us: int
    user_key: str
    user_id: str


class Found(NamedTuple):
    """What is known of some ids, by their places; of the others there is no link."""

    steady: dict[int, Entry]
    """Those to which one link applies all the time that was asked for."""
    others: list[int]


class _Aliased(msgspec.Struct):
    previous_id: str | int | None = msgspec.field(name="previousId", default=None)


_aliased = msgspec.json.Decoder(_Aliased).decode

NEEDS = (
    *("type", "user_id", "anonymous_id", "rest", "released_at", "occurred_at"),
    *("message_id", "source_id", "envelope_id", "envelope_index"),
)
"""The columns that `links_of` reads."""


def links_of(batch: pa.RecordBatch, rule: LinkRule) -> list[Link]:
    """Return the links among released events (at least the columns of NEEDS)."""
    links_may_be = pc.is_in(batch.column("type"), pa.array(rule.link_on))
    wanted = pc.and_(links_may_be, batch.column("user_id").is_valid())
    if not pc.any(wanted).as_py():
        return []
    rows = batch.select(NEEDS).filter(wanted)
    released, occurred = int64s(rows.column("released_at")).tolist(), int64s(rows.column("occurred_at")).tolist()
    links = []
    texts = rows.drop_columns(["released_at", "occurred_at"]).to_pylist()
    for row, at_us, occurred_us in zip(texts, released, occurred, strict=True):
        id_ = row["anonymous_id"] if row["type"] == IDENTIFY else _previous_id(row["rest"])
        if id_ and id_ != row["user_id"]:
            origin = (row["message_id"], row["source_id"], row["envelope_id"], row["envelope_index"])
            links.append(Link(at_us, id_, row["user_id"], *origin, row["type"], occurred_us))
    return links


def _previous_id(rest: str | None) -> str | None:
    try:
        previous = _aliased(rest).previous_id if rest else None
    except msgspec.MsgspecError:  # an object or a list, say: no id
        return None
    return None if previous is None else str(previous).strip()


class Links:
    """Whose sequence each id belongs to, at any time. Not shared between threads.

    The rule: a user's key is fixed by their first link. It is the key of the other id where that was never linked
    before (the person's anonymous sequence goes on after the login), else the user's own id (a second person on a
    shared device). An anonymous id follows its latest link. An alias joins: a new id takes the old one's key; of two
    that are known, the old one takes the new one's key from then on.
    """

    def __init__(self, rule: LinkRule) -> None:
        self._remember_us = round(rule.remember_s * 1_000_000)
        self._entries: dict[str, list[Entry]] = {}
        self._swept_us = 0

    def __len__(self) -> int:
        return len(self._entries)

    def apply(self, link: Link) -> list[Change]:
        """Let a link take effect; return what it changed. The same link again changes nothing."""
        of_id, of_user = self.at(link.id, link.at_us), self.at(link.user_id, link.at_us)
        if of_user is not None:
            key = of_user.user_key
        elif link.kind == ALIAS or of_id is None:
            key = link.id if of_id is None else of_id.user_key
        else:
            key = link.user_id
        changes = []
        if of_id is None or (of_id.user_key, of_id.user_id) != (key, link.user_id) or self._fades(of_id, link):
            changes.append(Change(link.id, link.user_id, key, link))
        if of_user is None or self._fades(of_user, link):
            changes.append(Change(link.user_id, link.user_id if of_user is None else of_user.user_id, key, link))
        for change in changes:
            self.put(change.id, Entry(link.at_us, change.user_key, change.user_id))
        return changes

    def apply_all(self, links: Iterable[Link]) -> list[Change]:
        """Let links take effect, in their order; return what they changed and is not on record.

        Links that come again, after a crash, change nothing but where two of one microsecond name the same id.
        """
        due = sorted(set(links))
        on_record = {(id_, each.at_us) for each in due for id_ in (each.id, each.user_id) if self._begins(id_, each)}
        changes = [change for each in due for change in self.apply(each)]
        return [change for change in changes if (change.id, change.link.at_us) not in on_record]

    def _begins(self, id_: str, link: Link) -> bool:
        entry = self.at(id_, link.at_us)
        return entry is not None and entry.at_us == link.at_us

    def put(self, id_: str, entry: Entry) -> None:
        """Enter what is known of an id from a time on."""
        entries = self._entries.get(id_)
        if entries is None:
            self._entries[id_] = [entry]
            return
        bisect.insort_right(entries, entry, key=_time_of)
        # An id that many users log in with (a shared device, a constant) must not keep all of them.
        old = bisect.bisect_right(entries, entries[-1].at_us - _HISTORY_US, key=_time_of) - 1
        if old > 0:
            del entries[:old]

    def at(self, id_: str, at_us: int) -> Entry | None:
        """Return what is in force of an id at a time."""
        entries = self._entries.get(id_)
        if not entries:
            return None
        place = bisect.bisect_right(entries, at_us, key=_time_of) - 1
        if place < 0 or at_us - entries[place].at_us > self._remember_us:
            return None
        return entries[place]

    def during(self, id_: str, first_us: int, last_us: int) -> list[tuple[int, Entry | None]]:
        """Return what is in force of an id from first to last, as (since when, what), the first at first_us."""
        entries = self._entries.get(id_)
        if not entries:
            return [(first_us, None)]
        found: list[tuple[int, Entry | None]] = [(first_us, self.at(id_, first_us))]
        start = bisect.bisect_right(entries, first_us, key=_time_of)
        for place in range(max(start - 1, 0), len(entries)):
            entry = entries[place]
            if entry.at_us > last_us:
                break
            if entry.at_us > first_us:
                found.append((entry.at_us, entry))
            ends_us = entry.at_us + self._remember_us + 1
            following = entries[place + 1].at_us if place + 1 < len(entries) else last_us + 1
            if first_us < ends_us < following:
                found.append((ends_us, None))
        return found

    def sweep(self, now_us: int) -> None:
        """Let go of what is no longer in force; done in full only now and then."""
        if now_us - self._swept_us < min(self._remember_us // 8, _DAY_US):
            return
        self._swept_us = now_us
        kept_us = now_us - self._remember_us - _HISTORY_US
        self._entries = {id_: entries for id_, entries in self._entries.items() if entries[-1].at_us >= kept_us}

    def look_up(self, ids: Sequence[str], first_us: int, last_us: int) -> "Found":
        """Return what is in force of ids from first to last; in one loop, since it is asked for each batch's ids."""
        get, remember_us = self._entries.get, self._remember_us
        steady, others = {}, []
        for place, id_ in enumerate(ids):
            entries = get(id_)
            if entries is not None:
                entry = entries[-1]
                if entry[0] <= first_us and last_us - entry[0] <= remember_us:
                    steady[place] = entry
                else:
                    others.append(place)
        return Found(steady, others)

    def items(self) -> Iterator[tuple[str, Sequence[Entry]]]:
        """Yield every id that is known, with its entries in the order of time."""
        yield from self._entries.items()

    def _fades(self, entry: Entry, link: Link) -> bool:
        # Written anew, in force for longer: by the links alone, so that a restart, or a replay, does the same.
        return link.at_us - entry.at_us > self._remember_us // 2


def _time_of(entry: Entry) -> int:
    return entry.at_us

"""Settled: which envelopes a lane without order is done with: what `millrace verify` compares with the archive.

A lane with order has a mark for each row of the archive. One without has never seen the archive; it keeps, for a day,
each envelope that brought it events: 64 bits of its id, when it was published, and how many events it brought.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from millrace.delivery.ledger import Ledger
from millrace.transforms.batches import codes, int64s
from millrace.transforms.recent_ids import mixed

_SCHEMA = """
CREATE TABLE IF NOT EXISTS settled_envelopes (
    id INTEGER PRIMARY KEY,
    settled_s INTEGER NOT NULL,  -- when, seconds since the epoch
    first_us INTEGER NOT NULL, last_us INTEGER NOT NULL,  -- when the oldest and the newest of them was published
    envelopes BLOB NOT NULL      -- zlib, see _packed
);
CREATE INDEX IF NOT EXISTS settled_envelopes_by_time ON settled_envelopes (settled_s);
"""
_SINCE, _UNTIL = "live: since", "live: until"
_NUMBER_DIGITS = 18
_ENDLESS_US = 1 << 62


class Envelopes(NamedTuple):
    """Some envelopes, side by side."""

    keys: npt.NDArray[np.uint64]
    """See envelope_keys."""
    published_us: npt.NDArray[np.int64]
    events: npt.NDArray[np.uint32]
    """How many events of it the lane is done with: they took a route and are delivered, dead, skipped or parked, or
    they were copies of such."""


@dataclasses.dataclass(frozen=True)
class SettledEnvelopes:
    """What a lane without order is done with.

    Attributes:
        since_us: what was published earlier is not told of here: the lane began, or its record is kept, since then.
        until_us: what was published up to then is settled, as far as the lane can know: later messages may be under
            way, or wait in the subscription. Pub/Sub gives a backlog only roughly in order: allow a minute.
        envelopes: those settled, by `keys` mixed with `published_us`, rising.
    """

    since_us: int
    until_us: int
    envelopes: Envelopes

    def events_of(self, envelope_ids: pa.Array, published_at: pa.Array) -> npt.NDArray[np.int64]:
        """Return for each row of the archive how many events of its envelope are settled here; -1: it never was.

        A row that takes a route of this lane, published between since_us and until_us, whose envelope gives -1, or less
        than the archive has such rows of it, was never settled.
        """
        wanted = _mixed(envelope_keys(envelope_ids), int64s(published_at))
        there = _mixed(self.envelopes.keys, self.envelopes.published_us)
        if not len(there):
            return np.full(len(wanted), -1, np.int64)
        at = np.minimum(np.searchsorted(there, wanted), len(there) - 1)
        return np.where(there[at] == wanted, self.envelopes.events[at].astype(np.int64), -1)


def settled_envelopes(ledger: Ledger, from_us: int = 0, to_us: int = _ENDLESS_US) -> SettledEnvelopes | None:
    """Return which envelopes published in a span of time a lane without order is done with; None: it has none.

    Args:
        ledger: the lane's; read-only is enough.
        from_us: the first moment of publishing, µs since the epoch; the whole record takes 20 bytes an envelope.
        to_us: the end.
    """
    since_us, until_us = (ledger.get(key) for key in (_SINCE, _UNTIL))
    if since_us is None:
        return None
    rows = ledger.file.execute(
        "SELECT envelopes FROM settled_envelopes WHERE last_us >= ? AND first_us < ?", (from_us, to_us)
    )
    parts = [_unpacked(blob) for (blob,) in rows]
    return SettledEnvelopes(int(since_us), int(until_us or b"0"), _together(parts))


def envelope_keys(envelope_ids: pa.Array) -> npt.NDArray[np.uint64]:
    """Return 64 bits for each envelope id: the number that it is, as Pub/Sub's are; else a hash, the top bit set."""
    number, distinct = codes(envelope_ids)
    return np.array([envelope_key(each) for each in distinct.to_pylist()], np.uint64)[number]


def envelope_key(envelope_id: str) -> int:
    """Return the key of one envelope id.

    >>> envelope_key("16398123456789012"), envelope_key("007") >> 63, envelope_key("x") >> 63
    (16398123456789012, 1, 1)
    """
    if envelope_id.isascii() and envelope_id.isdigit() and len(envelope_id) <= _NUMBER_DIGITS and envelope_id[0] != "0":
        return int(envelope_id)
    return xxhash.xxh3_64_intdigest(envelope_id.encode()) | 1 << 63


class SettledRecord:
    """The writer's side: of the lane itself.

    Args:
        ledger: the lane's, open for writing.
        keep_s: how long an envelope is kept.
    """

    def __init__(self, ledger: Ledger, keep_s: float, now_us: int) -> None:
        self._ledger = ledger
        self._keep_s = keep_s
        self._forgot_s = 0
        ledger.file.executescript(_SCHEMA)
        if ledger.get(_SINCE) is None:
            ledger.put(_SINCE, str(now_us).encode())

    def add(self, envelopes: Envelopes, until_us: int, now_us: int) -> None:
        """Enter what was settled, and up to when all is; inside a transaction of the ledger's."""
        now_s = now_us // 1_000_000
        if len(envelopes.keys):
            span = int(envelopes.published_us.min()), int(envelopes.published_us.max())
            self._ledger.file.execute(
                "INSERT INTO settled_envelopes (settled_s, first_us, last_us, envelopes) VALUES (?, ?, ?, ?)",
                (now_s, *span, _packed(envelopes)),
            )
        self._ledger.keep(_UNTIL, str(until_us).encode())
        if now_s - self._forgot_s >= 60:
            self._forgot_s = now_s
            before_s = now_s - round(self._keep_s)
            gone = self._ledger.file.execute("DELETE FROM settled_envelopes WHERE settled_s < ?", (before_s,)).rowcount
            if gone:
                self._ledger.keep(_SINCE, str(before_s * 1_000_000).encode())

    def newest(self, most: int, after_s: int) -> list[Envelopes]:
        """Return what was settled last: about so many envelopes, oldest first."""
        found: list[Envelopes] = []
        rows = self._ledger.file.execute(
            "SELECT envelopes FROM settled_envelopes WHERE settled_s >= ? ORDER BY id DESC", (after_s,)
        )
        for (blob,) in rows:
            found.append(_unpacked(blob))
            most -= len(found[-1].keys)
            if most <= 0:
                break
        return found[::-1]


NO_ENVELOPES = Envelopes(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.uint32))


def _packed(envelopes: Envelopes) -> bytes:
    """Return differences of the sorted columns, the like bytes of all numbers together: they are nearly all zeros."""
    order = np.argsort(envelopes.keys)
    keys = np.diff(envelopes.keys[order], prepend=np.uint64(0)).astype("<u8")
    published = np.diff(envelopes.published_us[order], prepend=np.int64(0)).astype("<i8")
    columns = [each.view(np.uint8) for each in (keys, published, envelopes.events[order].astype("<u4"))]
    return zlib.compress(b"".join(each.reshape(len(order), -1).T.tobytes() for each in columns), 1)


def _unpacked(blob: bytes) -> Envelopes:
    data = np.frombuffer(zlib.decompress(blob), np.uint8)
    size = len(data) // 20
    keys, published = (
        np.ascontiguousarray(data[start * size : (start + 8) * size].reshape(8, size).T).view("<u8").ravel()
        for start in (0, 8)
    )
    events = np.ascontiguousarray(data[16 * size :].reshape(4, size).T).view("<u4").ravel()
    return Envelopes(np.cumsum(keys), np.cumsum(published.view(np.int64)), events.astype(np.uint32))


def _mixed(keys: npt.NDArray[np.uint64], published_us: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    return mixed(keys ^ mixed(published_us.view(np.uint64)))


def _together(parts: Sequence[Envelopes]) -> Envelopes:
    """Return them by their marks; of what is there twice (it came again after a crash) the larger count holds."""
    if not parts:
        return NO_ENVELOPES
    keys = np.concatenate([part.keys for part in parts])
    published = np.concatenate([part.published_us for part in parts])
    events = np.concatenate([part.events for part in parts])
    marks = _mixed(keys, published)
    order = np.argsort(marks)
    starts = np.flatnonzero(np.insert(np.diff(marks[order]) != 0, 0, True))
    return Envelopes(keys[order][starts], published[order][starts], np.maximum.reduceat(events[order], starts))

"""Where links are kept: in this process on one node; as batches of columns in a runner's state, and in the table."""

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from millrace.schemas import identity
from millrace.transforms.batches import int64s
from millrace.transforms.link import Change, Entry, Link, LinkRule, Links, links_of

_DAY_US = 86_400_000_000

ENTRIES: pa.Schema = pa.schema([identity.SCHEMA.field(name) for name in ("id", "user_id", "user_key", "linked_at")])
"""What is known of ids: the columns of the table that `put_entries` reads."""


def put_entries(links: Links, entries: pa.RecordBatch) -> None:
    """Enter rows of the table, or what `entries_of` returned: at least the columns of ENTRIES."""
    times = int64s(entries.column("linked_at")).tolist()
    texts = (entries.column(name).to_pylist() for name in ("id", "user_key", "user_id"))
    same: dict[str, str] = {}  # an id is most often another's key, too: one text in memory
    for id_, user_key, user_id, at_us in zip(*texts, times, strict=True):
        own = same.setdefault(id_, id_)
        links.put(own, Entry(at_us, same.setdefault(user_key, user_key), same.setdefault(user_id, user_id)))


def entries_of(links: Links) -> pa.RecordBatch:
    """Return all that is known of ids, in columns."""
    rows = [(id_, entry) for id_, entries in links.items() for entry in entries]
    arrays = [
        pa.array([id_ for id_, _ in rows], pa.string()),
        pa.array([entry.user_id for _, entry in rows], pa.string()),
        pa.array([entry.user_key for _, entry in rows], pa.string()),
        pa.array([entry.at_us for _, entry in rows], pa.int64()).cast(ENTRIES.field("linked_at").type),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=ENTRIES)


def records_of(changes: Sequence[Change]) -> pa.RecordBatch:
    """Return changes as rows for the table (schemas.identity.BATCH); of one id and microsecond the last."""
    changes = list({(change.id, change.link.at_us): change for change in changes}.values())
    links = [change.link for change in changes]
    days = [link.at_us // _DAY_US for link in links]
    columns: dict[str, Any] = {
        "id": [change.id for change in changes],
        "user_id": [change.user_id for change in changes],
        "user_key": [change.user_key for change in changes],
        "linked_at": pa.array([link.at_us for link in links], pa.int64()),
        "occurred_at": pa.array([link.occurred_us for link in links], pa.int64()),
        "date": pa.array(days, pa.int32()),
        "receipt": [-1] * len(links),
    }
    for name in ("kind", "message_id", "source_id", "envelope_id", "envelope_index"):
        columns[name] = [getattr(link, name) for link in links]
    arrays = [
        values.cast(field.type) if isinstance(values, pa.Array) else pa.array(values, field.type)
        for field, values in ((field, columns[field.name]) for field in identity.BATCH)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=identity.BATCH)


class LinkStore:
    """The links of this process: one node, where every event passes through it. Safe to share between threads.

    Links are entered when their events are released, in any order, and take effect in theirs: a window leaves only
    when the watermark has passed its end, so by then all links before that end have been entered.
    """

    def __init__(self, rule: LinkRule) -> None:
        self._rule = rule
        self.links = Links(rule)
        self.lock = threading.Lock()
        """Held while `links` is looked up."""
        self._waiting: set[Link] = set()
        self._changes: dict[int, list[Change]] = {}

    def enter(self, released: pa.RecordBatch) -> None:
        """Enter the links among released events; they wait until their window leaves."""
        if links := links_of(released, self._rule):
            self.enter_links(links)

    def enter_links(self, links: Iterable[Link]) -> None:
        """Enter links."""
        with self.lock:
            self._waiting.update(links)

    def settle(self, until_us: int, window_us: int) -> None:
        """Let all links released before until_us take effect.

        Args:
            until_us: the end of a window that leaves now.
            window_us: the windows' length.
        """
        with self.lock:
            due = {link for link in self._waiting if link.at_us < until_us}
            self._waiting -= due
            for change in self.links.apply_all(due):
                self._changes.setdefault(change.link.at_us // window_us * window_us, []).append(change)
            self.links.sweep(until_us)

    def take_changes(self, start_us: int) -> list[Change]:
        """Return, once, what the links of the window from start_us on have changed."""
        with self.lock:
            return self._changes.pop(start_us, [])


_HERE: dict[LinkRule, LinkStore] = {}
_HERE_LOCK = threading.Lock()


def links_here(rule: LinkRule) -> LinkStore:
    """Return the links of this process."""
    with _HERE_LOCK:
        return _HERE.setdefault(rule, LinkStore(rule))


def forget_links_here() -> None:
    """Forget all links of this process."""
    with _HERE_LOCK:
        _HERE.clear()

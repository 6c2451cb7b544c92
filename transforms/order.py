"""Order: events wait for those that occurred before them, and leave in their user's true order.

The rule is the release time. An event that occurred at t is held until t + wait, so that whatever occurred before it
and arrives within the wait has its place; what comes later leaves at once, flagged late. Released times are never
before an element's own timestamp, so nothing is late for Beam, and no state or timer is needed.

Shards take turns: the windows of each are as long as all others' and end at another moment. So what a window brings
comes in several smaller portions instead of one that keeps every stage and sink busy (docs/decisions/0013).
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from millrace.schemas.event import RECEIPT
from millrace.transforms import in_beam as _in_beam  # noqa: F401  registers how batches travel
from millrace.transforms.batches import codes, concat, int64s, shard_of
from millrace.transforms.counts import count
from millrace.transforms.link import LinkRule
from millrace.transforms.link_store import links_here
from millrace.transforms.order_index import PLACE_BITS
from millrace.transforms.resolve import ResolveUsers, known_keys

STAGE = "order"

_TIME = pa.timestamp("us", tz="UTC")
_DAY_US = 86_400_000_000


class Piece(NamedTuple):
    """Events of one shard that leave in one window."""

    shard: int
    window_us: int
    """Where the window begins, µs."""
    batch: pa.RecordBatch


def release(
    batch: pa.RecordBatch, *, wait_us: int, window_us: int, shards: int, turns: int = 1, keys: pa.Array | None = None
) -> list[Piece]:
    """Give each event its release time, and split the batch by shard and release window.

    Args:
        batch: schemas.event.BATCH, and whatever columns stages before have added.
        wait_us: how long an event waits for earlier ones, µs.
        window_us: length of the windows that leave together, µs.
        shards: users are spread over so many by a hash that is the same in every process.
        turns: so many of them end their windows one after the other; a divisor of window_us.
        keys: spread by these instead of user_key.

    Returns:
        Pieces with `released_at`, `is_late` and `late_by_ms` added; every row is in exactly one.
    """
    if not batch.num_rows:
        return []
    due = int64s(batch.column("occurred_at")) + wait_us
    arrived = int64s(batch.column("arrived_at"))
    released = np.maximum(due, arrived)
    late_us = released - due
    batch = (
        batch.append_column("released_at", pa.array(released).cast(_TIME))
        .append_column("is_late", pa.array(late_us > 0))
        .append_column("late_by_ms", pa.array(-(-late_us // 1_000)))
    )
    shard = shard_of(batch.column("user_key") if keys is None else keys, shards)
    groups = window_start(released, shard, window_us, turns) * shards + shard
    by_group = np.argsort(groups, kind="stable")
    batch, groups = batch.take(pa.array(by_group)), groups[by_group]
    starts = np.flatnonzero(np.diff(groups, prepend=groups[0] - 1))
    return [
        Piece(int(group % shards), int(group // shards), batch.slice(start, end - start))
        for start, end, group in zip(starts, [*starts[1:], len(groups)], groups[starts], strict=True)
    ]


def divides(turns: int, window_s: float) -> bool:
    """Say whether a window is so many turns (1 or more) of whole milliseconds: Beam's windows know no shorter time."""
    return round(window_s * 1_000_000) % (turns * 1_000) == 0


_Whole = TypeVar("_Whole", int, npt.NDArray[np.int64])


def window_start(released_us: _Whole, shard: _Whole, window_us: int, turns: int) -> _Whole:
    """Return where the window of a shard begins in which an event leaves, µs.

    It never falls from an event of a user to one released later, so that windows keep their order.
    """
    first_us = shard % turns * (window_us // turns)
    return (released_us - first_us) // window_us * window_us + first_us


def order(pieces: Sequence[pa.RecordBatch]) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Put the pieces of one shard and window in order, and take out what was delivered twice.

    The order is (user_key, released_at, occurred_at, received_at, message_id, ...), which for events in time is that of
    occurred_at; of events with one id and place in the queue one stays (copies in other places were told apart before,
    transforms/deduplicate.py). It depends on the events alone, not on the pieces or their order. order_index follows
    from released_at, not from the window or the run: an event that a crash held up still has its place among those that
    were archived before.

    Returns:
        The ordered events with `order_index` and `date`, and the repeats: nothing but their receipts.
    """
    batch = concat(pieces)
    batch = batch.take(pa.array(_sorted(batch)))
    is_repeat = _repeats(batch)
    repeats = batch.select([RECEIPT.name]).filter(pa.array(is_repeat))
    if is_repeat.any():
        batch = batch.filter(pa.array(~is_repeat))
    index = (int64s(batch.column("released_at")) << PLACE_BITS) + _places(batch)
    batch = batch.append_column("order_index", pa.array(index))
    return batch.append_column("date", _days(batch)), repeats


class Ordered(NamedTuple):
    """The doors of OrderPerUser."""

    batches: beam.PCollection[tuple[int, pa.RecordBatch]]
    repeats: beam.PCollection[pa.RecordBatch]
    identities: beam.PCollection[pa.RecordBatch] | None
    """None without a rule for links."""


@dataclasses.dataclass(eq=False)
class OrderPerUser(beam.PTransform):
    """Let each user's events leave in the order in which they occurred.

    In:      batches, schemas.event.BATCH; element timestamps no later than any `arrived_at` inside
    Out:     (shard, batch): a batch of one shard and window, in order, with released_at, is_late, late_by_ms,
             order_index, date; repeats: the receipts of messages that were delivered twice; with links: identities,
             schemas.identity.BATCH, user_key that of the person, and linked_at
    Window:  FixedWindows(turn_s), the last turn of an event's window of window_s on the release time.  Order: per user,
             inside a batch and across windows, of all that arrive within wait_s of their occurred_at; later ones are
             flagged is_late, never dropped.
    State:   the links, see ResolveUsers; the runner holds an event for wait_s + window_s at most.
    Repeats: same events, same rows.
    Errors:  ValueError when built with a wait below 0, a window, shards or turns below 1, or a window that is not so
             many whole milliseconds for each turn
    Source:  docs/guarantees.md
    """

    wait_s: float = 10.0
    window_s: float = 5.0
    shards: int = 8
    turns: int = 4
    links: LinkRule | None = None
    """Which events link two ids to one person; None: a user is their user_id, else their anonymous_id."""
    alone: bool = True
    """One node: links are kept in this process."""

    def __post_init__(self) -> None:
        if self.wait_s < 0 or self.window_s < 1 or self.shards < 1:
            raise ValueError(
                f"need wait_s >= 0, window_s >= 1, shards >= 1; got {self.wait_s}, {self.window_s}, {self.shards}"
            )
        if self.turns < 1 or not divides(self.turns, self.window_s):
            raise ValueError(
                f"need turns >= 1 of whole milliseconds; {self.turns} do not divide a window of {self.window_s} s so"
            )

    @property
    def turn_s(self) -> float:
        """How long a turn is: the length of the windows in which batches leave."""
        return self.window_s / self.turns

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> "Ordered":
        turns = _Turns(round(self.window_s * 1_000_000), self.turns)
        # With links, whose an event is hangs on those before it, and its turn on whose it is.
        first = turns if self.links is None else turns.one()
        release = _ReleaseFn(self.wait_s, first, self.shards, self.links if self.alone else None)
        pieces = (
            batches
            | "Release" >> beam.ParDo(release).with_output_types(tuple[int, pa.RecordBatch])
            | "Window" >> beam.WindowInto(FixedWindows(self.turn_s))
        )
        identities = None
        if self.links is not None:
            users = ResolveUsers(self.links, self.shards, self.turn_s, self.alone)
            resolved, identities = pieces | "ResolveUsers" >> users
            pieces = (
                resolved
                | "TakeTurns" >> beam.Map(turns.leave).with_output_types(tuple[int, pa.RecordBatch])
                | "WindowOfTurn" >> beam.WindowInto(FixedWindows(self.turn_s))
            )
        groups = pieces | "GroupByShard" >> beam.GroupByKey()
        doors = groups | "Order" >> beam.ParDo(_OrderFn()).with_output_types(
            tuple[int, pa.RecordBatch], repeats=pa.RecordBatch
        ).with_outputs("repeats", main="batches")
        return Ordered(doors.batches, doors.repeats, identities)


class _Turns(NamedTuple):
    """When the windows of shards end; see `release`."""

    window_us: int
    turns: int

    def one(self) -> "_Turns":
        """Return windows of a turn's length, which are the same for all shards."""
        return _Turns(self.window_us // self.turns, 1)

    def stamp(self, shard: int, piece: pa.RecordBatch, window_us: int) -> TimestampedValue:
        """Let a piece leave at the end of the window that begins at window_us."""
        return TimestampedValue((shard, piece), Timestamp(micros=window_us + self.window_us - 1))

    def leave(self, keyed: tuple[int, pa.RecordBatch]) -> TimestampedValue:
        """Let a piece, all of it released in one turn, leave at the end of its shard's window."""
        shard, piece = keyed
        released_us = pc.min(piece.column("released_at")).value
        return self.stamp(shard, piece, window_start(released_us, shard, self.window_us, self.turns))


class _ReleaseFn(beam.DoFn):
    def __init__(self, wait_s: float, turns: _Turns, shards: int, links: LinkRule | None) -> None:
        self._wait_us = round(wait_s * 1_000_000)
        self._turns = turns
        self._shards = shards
        self._links = links

    def process(self, batch: pa.RecordBatch) -> Iterator[Any]:
        store = None if self._links is None else links_here(self._links)
        now_us = 0 if store is None else pc.max(batch.column("arrived_at")).value
        keys = None if store is None else known_keys(batch.column("user_key"), store, now_us)
        sizes = {"wait_us": self._wait_us, **self._turns._asdict(), "shards": self._shards}
        for piece in release(batch, **sizes, keys=keys):
            if store is not None:
                store.enter(piece.batch)  # before it can leave: see LinkStore
            yield self._turns.stamp(piece.shard, piece.batch, piece.window_us)


class _OrderFn(beam.DoFn):
    def process(self, group: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[Any]:
        shard, pieces = group
        batch, repeats = order(list(pieces))
        late = pc.sum(batch.column("is_late")).as_py() or 0
        count(STAGE, "events_out", batch.num_rows)
        count(STAGE, "late", late)
        count(STAGE, "repeats", repeats.num_rows)
        yield shard, batch
        if repeats.num_rows:
            yield beam.pvalue.TaggedOutput("repeats", repeats)


def _sorted(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Return the row numbers in order; numbers sort ten times as fast as strings, so users are ranked first."""
    user, keys = codes(batch.column("user_key"))
    rank = np.empty(len(keys), np.int64)
    rank[pc.sort_indices(keys).to_numpy(zero_copy_only=False)] = np.arange(len(keys))
    user = rank[user]
    times = [int64s(batch.column(name)) for name in ("received_at", "occurred_at", "released_at")]
    rows: npt.NDArray[np.int64] = np.lexsort((*times, user))
    tied = np.logical_and.reduce([np.diff(key[rows]) == 0 for key in (*times, user)])
    if tied.any():
        unclear = np.flatnonzero(np.append(tied, False) | np.insert(tied, 0, False))
        rows[unclear] = rows[unclear][_sorted_ties(batch.take(pa.array(rows[unclear])), tied, unclear)]
    return rows


def _sorted_ties(rows: pa.RecordBatch, tied: npt.NDArray[np.bool_], unclear: npt.NDArray[np.int64]) -> Any:
    """Order the few rows that times leave open; each run of ties keeps its place among the others."""
    run = np.cumsum(~np.insert(tied, 0, False))[unclear]
    names = ("message_id", "source_id", "published_at", "envelope_id", "envelope_index")
    table = pa.table({"run": pa.array(run), **{name: rows.column(name) for name in names}})
    return pc.sort_indices(table, sort_keys=[(name, "ascending") for name in table.schema.names]).to_numpy()


def _repeats(batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    """Say of each row whether one before it has the same id and place in the queue."""
    repeats = np.zeros(batch.num_rows, np.bool_)
    message, distinct = codes(batch.column("message_id"))
    if len(distinct) < batch.num_rows:
        several = np.flatnonzero(np.bincount(message, minlength=len(distinct))[message] > 1)
        columns = [message, codes(batch.column("source_id"))[0], codes(batch.column("envelope_id"))[0]]
        same = np.column_stack([*columns, int64s(batch.column("envelope_index"))])[several]
        _, first = np.unique(same, axis=0, return_index=True)
        repeats[several] = True
        repeats[several[first]] = False
    return repeats


def _places(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Number the rows of one user and release time from 0; the batch is sorted."""
    user, _ = codes(batch.column("user_key"))
    place = np.arange(len(user))
    starts = np.flatnonzero(np.diff(user, prepend=-1) | np.diff(int64s(batch.column("released_at")), prepend=-1))
    return place - np.repeat(starts, np.diff(np.append(starts, len(user))))


def _days(batch: pa.RecordBatch) -> pa.Array:
    days = int64s(batch.column("released_at")) // _DAY_US
    return pa.array(days.astype(np.int32)).cast(pa.date32())

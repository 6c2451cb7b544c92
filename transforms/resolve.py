"""Resolve: each event's user_key becomes that of the person, by the links in force when the event was released."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import FixedWindows, GlobalWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from millrace.schemas import identity
from millrace.transforms.batches import codes, concat, int64s, shard_of
from millrace.transforms.counts import count
from millrace.transforms.in_beam import RecordBatchCoder
from millrace.transforms.link import Change, Link, LinkRule, Links, links_of
from millrace.transforms.link_store import ENTRIES, LinkStore, entries_of, links_here, put_entries, records_of

STAGE = "resolve"

_NEVER = np.iinfo(np.int64).min


class Resolved(NamedTuple):
    """Events with their persons' keys."""

    batch: pa.RecordBatch
    """`user_key` set anew, `linked_at` added; all other columns are those given, not copies."""
    shards: npt.NDArray[np.int64]
    """Each row's, by its new key."""


def resolve(batch: pa.RecordBatch, links: Links, shards: int) -> Resolved:
    """Set the user_key of released events as of their released_at.

    Args:
        batch: with released_at; user_key is the event's own: its user_id, else its anonymous_id.
        links: all that are released before the end of the events' window.
        shards: users are spread over so many.
    """
    number, ids = codes(batch.column("user_key"))
    keys: list[str] = ids.to_pylist()
    released = int64s(batch.column("released_at"))
    first_us, last_us = int(released.min()), int(released.max())
    steady, others = links.look_up(keys, first_us, last_us)
    if not steady and not others:
        shard = shard_of(ids, shards)[number]
        return Resolved(_with_linked_at(batch, pa.nulls(batch.num_rows, identity.LINKED_AT.type)), shard)
    since = [_NEVER] * len(keys)
    for place, entry in steady.items():
        keys[place], since[place] = entry.user_key, entry.at_us
    for place in others:
        spans = links.during(keys[place], first_us, last_us)
        if len(spans) > 1:  # its key changes among these events: each span of time gets a number of its own
            rows = np.flatnonzero(number == place)
            span = np.searchsorted([since_us for since_us, _ in spans], released[rows], side="right") - 1
            number[rows] = np.where(span == 0, place, len(keys) + span - 1)
        own = keys[place]
        for at, (_, during) in enumerate(spans):
            key, since_us = (own, _NEVER) if during is None else (during.user_key, during.at_us)
            if at == 0:
                keys[place], since[place] = key, since_us
            else:
                keys.append(key)
                since.append(since_us)
    by_number = pa.array(keys, pa.string())
    times = np.array(since, np.int64)
    linked_at = pa.array(times, mask=times == _NEVER).cast(identity.LINKED_AT.type)
    rows_of = pa.array(number)
    user_key = batch.schema.get_field_index("user_key")
    batch = batch.set_column(user_key, batch.schema.field(user_key), by_number.take(rows_of))
    return Resolved(_with_linked_at(batch, linked_at.take(rows_of)), shard_of(by_number, shards)[number])


def _with_linked_at(batch: pa.RecordBatch, values: pa.Array) -> pa.RecordBatch:
    return batch.append_column(identity.LINKED_AT, values)


def split(resolved: Resolved, first: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (shard, events): the batch itself where all of them are of one shard, as most often.

    Args:
        resolved: the events.
        first: the shard that most of them should be of.
    """
    batch, shards = resolved
    stay = shards == first
    if stay.all():
        yield first, batch
        return
    for shard in np.unique(shards).tolist():
        of_shard = shards == shard
        yield shard, batch if of_shard.all() else batch.filter(pa.array(of_shard))


def known_keys(user_keys: pa.Array, store: LinkStore, now_us: int) -> pa.Array:
    """Return whose each id is by the last link in force: a guess at what `resolve` will say, to spread events by."""
    number, ids = codes(user_keys)
    keys = ids.to_pylist()
    with store.lock:
        steady, _ = store.links.look_up(keys, now_us, now_us)
    if not steady:
        return user_keys
    for place, entry in steady.items():
        keys[place] = entry.user_key
    return pa.DictionaryArray.from_arrays(pa.array(number), pa.array(keys, pa.string()))


class ResolvedUsers(NamedTuple):
    """The doors of ResolveUsers."""

    pieces: beam.PCollection[tuple[int, pa.RecordBatch]]
    identities: beam.PCollection[pa.RecordBatch]


@dataclasses.dataclass(eq=False)
class ResolveUsers(beam.PTransform):
    """Give released events the keys of their persons.

    In:      (shard, piece) of `release`, in the windows of their release
    Out:     pieces, (shard, piece), by the shards of the new keys, with linked_at; identities, schemas.identity.BATCH:
             what the links of each window changed
    Window:  FixedWindows(window_s), kept.  Order: none.  Repeats: same events, same keys.
    State:   one node: `links_here`, which the stage before fills; else one value with all links that are in force
    Source:  docs/guarantees.md, docs/decisions/0009

    Args:
        rule: which events link.
        shards: users are spread over so many.
        window_s: the windows' length.
        alone: one node: links are kept in this process.
    """

    rule: LinkRule
    shards: int
    window_s: float
    alone: bool = True

    def expand(self, pieces: beam.PCollection[tuple[int, pa.RecordBatch]]) -> "ResolvedUsers":
        piece = tuple[int, pa.RecordBatch]
        if self.alone:
            doors = (
                pieces
                | "GroupByOwnShard" >> beam.GroupByKey()
                | "Resolve" >> beam.ParDo(_ResolveFn(self.rule, self.shards, self.window_s)).with_output_types(
                    piece, identities=pa.RecordBatch).with_outputs("identities", main="resolved")
            )  # fmt: skip
            return ResolvedUsers(doors.resolved, doors.identities)
        linked = (
            pieces
            | "FindLinks" >> beam.ParDo(_FindFn(self.rule)).with_output_types(tuple[int, bytes])
            | "GatherLinks" >> beam.GroupByKey()
            | "OneSequence" >> beam.WindowInto(GlobalWindows())
            | "Link" >> beam.ParDo(_LinkFn(self.rule, self.shards)).with_output_types(
                piece, identities=pa.RecordBatch).with_outputs("identities", main="known")
        )  # fmt: skip
        known = linked.known | "Window" >> beam.WindowInto(FixedWindows(self.window_s))
        resolved = (
            (pieces, known)
            | "Join" >> beam.Flatten()
            | "GroupByOwnShard" >> beam.GroupByKey()
            | "Resolve" >> beam.ParDo(_ResolveKnownFn(self.rule, self.shards)).with_output_types(piece)
        )
        return ResolvedUsers(resolved, linked.identities)


class _ResolveFn(beam.DoFn):
    """On one node: by the links of this process."""

    def __init__(self, rule: LinkRule, shards: int, window_s: float) -> None:
        self._rule = rule
        self._shards = shards
        self._window_us = round(window_s * 1_000_000)

    def process(
        self, group: tuple[int, Iterable[pa.RecordBatch]], window: Any = beam.DoFn.WindowParam
    ) -> Iterator[Any]:
        store = links_here(self._rule)
        store.settle(window.end.micros, self._window_us)
        batch = concat(list(group[1]))  # as Order would: what moves is taken out once, not of each small piece
        with store.lock:
            resolved = resolve(batch, store.links, self._shards)
        yield from _counted(split(resolved, group[0]), group[0])
        if changes := store.take_changes(window.start.micros):
            count(STAGE, "links", len(changes))
            yield beam.pvalue.TaggedOutput("identities", records_of(changes))


class _FindFn(beam.DoFn):
    """Gives the links of each piece, none too: so each window that has events has an element, and gets an answer."""

    def __init__(self, rule: LinkRule) -> None:
        self._rule = rule

    def process(self, keyed: tuple[int, pa.RecordBatch]) -> Iterator[tuple[int, bytes]]:
        yield 0, msgspec.msgpack.encode(links_of(keyed[1], self._rule))


_decode_links = msgspec.msgpack.Decoder(list[Link]).decode


class _LinkFn(beam.DoFn):
    """Takes the links of window after window, and tells each shard what is known of its ids.

    As in transforms/run_steps.py, windows wait for a timer, since Beam alone does not promise their order.
    """

    KNOWN = ReadModifyWriteStateSpec("known", RecordBatchCoder())
    WAITING = BagStateSpec("waiting", beam.coders.TupleCoder((beam.coders.VarIntCoder(), beam.coders.BytesCoder())))
    DUE = TimerSpec("due", TimeDomain.WATERMARK)

    def __init__(self, rule: LinkRule, shards: int) -> None:
        self._rule = rule
        self._shards = shards

    def process(
        self,
        group: tuple[int, Iterable[bytes]],
        at: Any = beam.DoFn.TimestampParam,
        waiting: Any = beam.DoFn.StateParam(WAITING),  # noqa: B008
        due: Any = beam.DoFn.TimerParam(DUE),  # noqa: B008
    ) -> Iterator[Any]:
        for links in group[1]:
            waiting.add((at.micros, links))
        due.set(at, dynamic_timer_tag=str(at.micros))
        return iter(())

    @on_timer(DUE)  # type: ignore[untyped-decorator]
    def when_due(
        self,
        now: Any = beam.DoFn.TimestampParam,
        waiting: Any = beam.DoFn.StateParam(WAITING),  # noqa: B008
        known: Any = beam.DoFn.StateParam(KNOWN),  # noqa: B008
    ) -> Iterator[Any]:
        """Let the links of the windows that are due take effect."""
        found = list(waiting.read())
        waiting.clear()
        windows: dict[int, list[Link]] = {}
        for at_us, encoded in found:
            if at_us > now.micros:
                waiting.add((at_us, encoded))
            else:
                windows.setdefault(at_us, []).extend(_decode_links(encoded))
        if not windows:
            return
        links = Links(self._rule)
        if (stored := known.read()) is not None:
            put_entries(links, stored)
        for at_us in sorted(windows):
            yield from self._told(links, links.apply_all(windows[at_us]), Timestamp(micros=at_us))
        links.sweep(max(windows))
        known.write(entries_of(links))

    def _told(self, links: Links, changes: Sequence[Change], at: Timestamp) -> Iterator[Any]:
        if changes:
            count(STAGE, "links", len(changes))
            yield beam.pvalue.TaggedOutput("identities", TimestampedValue(records_of(changes), at))
        entries = entries_of(links)
        for shard, of_shard in split(Resolved(entries, shard_of(entries.column("id"), self._shards)), -1):
            yield TimestampedValue((shard, of_shard), at)


class _ResolveKnownFn(beam.DoFn):
    """By the entries that come with the pieces of a shard and window."""

    def __init__(self, rule: LinkRule, shards: int) -> None:
        self._rule = rule
        self._shards = shards

    def process(self, group: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[tuple[int, pa.RecordBatch]]:
        given = list(group[1])
        pieces = [batch for batch in given if batch.schema.names != ENTRIES.names]
        if not pieces:
            return
        batch = concat(pieces)
        links = Links(self._rule)
        for entries in given:
            if entries.schema.names == ENTRIES.names:  # of all ids of the shard; few of them are here
                put_entries(links, entries.filter(pc.is_in(entries.column("id"), batch.column("user_key"))))
        yield from _counted(split(resolve(batch, links, self._shards), group[0]), group[0])


def _counted(parts: Iterable[tuple[int, pa.RecordBatch]], first: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    for shard, batch in parts:
        if shard != first:
            count(STAGE, "moved", batch.num_rows)
        yield shard, batch

"""Deduplicate with a runner's state: what is remembered of one shard of ids, log-structured, in bags by time.

Each batch appends one run of new keys to the bag of its time; a bag of many runs is merged into one; one whose time is
past the horizon is cleared by an event-time timer. To read a shard's bags for each batch would cost more than all the
rest, so a worker keeps what it has read, with a token: the state holds the token of its last change, and a memory with
another token is not what the state says (the shard was elsewhere meanwhile, or a bundle failed) and is read anew.
"""

import collections
import itertools
import threading
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import msgspec
import numpy as np
import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from millrace.transforms import in_beam as _in_beam  # noqa: F401  registers how batches travel
from millrace.transforms.copies import deduplicate
from millrace.transforms.deduplicate_doors import doors
from millrace.transforms.recent_ids import Keys, id_hashes
from millrace.transforms.remembered import Remembered

BUCKETS = 4
"""The horizon is kept to within a quarter of itself: each part is a bag, and a read of a shard reads them all."""
_BAGS = BUCKETS + 1
_MANY_RUNS = 64
"""Runs in a bag before they are merged: more are read one by one, fewer are written again more often."""


class ByShardFn(beam.DoFn):
    """Splits batches by a hash of the id."""

    def __init__(self, shards: int) -> None:
        self._shards = shards

    def process(self, batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        ids = id_hashes(batch.column("source_id"), batch.column("message_id"))
        shard = ((ids >> np.uint64(32)) % np.uint64(self._shards)).astype(np.int64)
        rows = np.argsort(shard, kind="stable")
        batch, shard = batch.take(pa.array(rows)), shard[rows]
        starts = np.flatnonzero(np.diff(shard, prepend=-1))
        for start, end in itertools.pairwise([*starts.tolist(), len(shard)]):
            yield int(shard[start]), batch.slice(start, end - start)


class _Bag(msgspec.Struct, array_like=True):
    """What a shard's bag holds."""

    bucket: int = -1
    runs: int = 0
    ids: int = 0


class _Index(msgspec.Struct, array_like=True):
    """What a shard's state holds."""

    token: bytes
    bags: list[_Bag]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Index).decode


class _Run(NamedTuple):
    at_us: int
    ids: Keys
    others: Keys


def _pack(run: _Run) -> bytes:
    head = np.array([run.at_us, len(run.ids)], np.int64)
    return b"".join(each.tobytes("C") for each in (head, run.ids, run.others))


def _unpack(packed: bytes) -> _Run:
    at_us, ids = np.frombuffer(packed, np.int64, 2).tolist()
    keys = np.frombuffer(packed, np.uint64, offset=16).reshape(-1, 2)
    return _Run(at_us, keys[:ids], keys[ids:])


class StateFn(beam.DoFn):
    """Deduplicates one shard's batches.

    Args:
        horizon_s, max_ids: as of Remembered; of all shards together.
        shards: how many there are.
    """

    INDEX = ReadModifyWriteStateSpec("index", BytesCoder())
    RUNS0 = BagStateSpec("runs0", BytesCoder())
    RUNS1 = BagStateSpec("runs1", BytesCoder())
    RUNS2 = BagStateSpec("runs2", BytesCoder())
    RUNS3 = BagStateSpec("runs3", BytesCoder())
    RUNS4 = BagStateSpec("runs4", BytesCoder())
    PAST = TimerSpec("past", TimeDomain.WATERMARK)

    def __init__(self, horizon_s: float, max_ids: int, shards: int) -> None:
        self._horizon_s = horizon_s
        self._all_max_ids = max_ids
        self._max_ids = max(1, max_ids // shards)
        self._bucket_us = max(1, round(horizon_s * 1_000_000 / BUCKETS))

    def process(  # noqa: PLR0917  a runner's state comes by parameters
        self,
        keyed: tuple[int, pa.RecordBatch],
        index: Any = beam.DoFn.StateParam(INDEX),  # noqa: B008
        runs0: Any = beam.DoFn.StateParam(RUNS0),  # noqa: B008
        runs1: Any = beam.DoFn.StateParam(RUNS1),  # noqa: B008
        runs2: Any = beam.DoFn.StateParam(RUNS2),  # noqa: B008
        runs3: Any = beam.DoFn.StateParam(RUNS3),  # noqa: B008
        runs4: Any = beam.DoFn.StateParam(RUNS4),  # noqa: B008
        past: Any = beam.DoFn.TimerParam(PAST),  # noqa: B008
    ) -> Iterator[Any]:
        shard, batch = keyed
        state = _State(index, (runs0, runs1, runs2, runs3, runs4), self._bucket_us, self._max_ids)
        remembered = _WORKERS.take(shard, state.token) or self._read(state)
        for done in deduplicate(batch, remembered, repeats_pass=False):
            if len(done.judged.ids) or len(done.judged.others):
                state.append(_Run(done.at_us, done.judged.ids, done.judged.others))
                past.set(Timestamp(micros=state.past_us))
            yield from doors(done, self._all_max_ids)
        state.write()
        _WORKERS.keep(shard, state.token, remembered, self._all_max_ids)

    @on_timer(PAST)  # type: ignore[untyped-decorator]
    def when_past(  # noqa: PLR0917
        self,
        now: Any = beam.DoFn.TimestampParam,
        index: Any = beam.DoFn.StateParam(INDEX),  # noqa: B008
        runs0: Any = beam.DoFn.StateParam(RUNS0),  # noqa: B008
        runs1: Any = beam.DoFn.StateParam(RUNS1),  # noqa: B008
        runs2: Any = beam.DoFn.StateParam(RUNS2),  # noqa: B008
        runs3: Any = beam.DoFn.StateParam(RUNS3),  # noqa: B008
        runs4: Any = beam.DoFn.StateParam(RUNS4),  # noqa: B008
    ) -> None:
        """Clear the bags that are past."""
        state = _State(index, (runs0, runs1, runs2, runs3, runs4), self._bucket_us, self._max_ids)
        state.clear_past(now.micros // self._bucket_us)
        state.write()

    def _read(self, state: "_State") -> Remembered:
        remembered = Remembered(self._horizon_s, self._max_ids, buckets=BUCKETS)
        for run in sorted(state.read(), key=_time_of):
            remembered.add(run.ids, run.others, run.at_us)
        return remembered


def _time_of(run: _Run) -> int:
    return run.at_us


class _State:
    """A shard's state: the index, and the bags as a ring over the buckets of time."""

    def __init__(self, index: Any, bags: tuple[Any, ...], bucket_us: int, max_ids: int) -> None:
        self._stored = index
        self._bags = bags
        self._bucket_us = bucket_us
        self._max_ids = max_ids
        packed = index.read()
        self._index = _decode(packed) if packed else _Index(b"", [_Bag() for _ in bags])
        self._changed = False

    @property
    def token(self) -> bytes:
        """What names the state as it is; empty where there is none yet."""
        return self._index.token

    def read(self) -> Iterator[_Run]:
        """Yield all runs."""
        for told, bag in zip(self._index.bags, self._bags, strict=True):
            if told.runs:
                yield from map(_unpack, bag.read())

    @property
    def past_us(self) -> int:
        """When all that it holds will be past; until then the ring takes away what is, as it goes on."""
        return (max(told.bucket for told in self._index.bags) + BUCKETS + 1) * self._bucket_us

    def append(self, run: _Run) -> None:
        """Add a run."""
        bucket = run.at_us // self._bucket_us
        number = bucket % _BAGS
        told, bag = self._index.bags[number], self._bags[number]
        if told.bucket < bucket:  # a round of the ring later
            self._clear(number)
            told.bucket = bucket
        new = len(run.ids) + len(run.others)
        while (held := sum(each.ids for each in self._index.bags)) and held + new > self._max_ids:
            self._clear(min((each.bucket, at) for at, each in enumerate(self._index.bags) if each.ids)[1])
        bag.add(_pack(run))
        told.runs += 1
        told.ids += new
        if told.runs >= _MANY_RUNS:
            merged = _merged(map(_unpack, bag.read()))
            bag.clear()
            bag.add(_pack(merged))
            told.runs = 1
        self._changed = True

    def clear_past(self, bucket: int) -> None:
        """Clear the bags that no event of a bucket looks at."""
        for number, told in enumerate(self._index.bags):
            if told.runs and told.bucket < bucket - BUCKETS:
                self._clear(number)

    def write(self) -> None:
        """Write the index, if anything has changed."""
        if self._changed:
            self._index.token = uuid.uuid4().bytes
            self._stored.write(_encode(self._index))

    def _clear(self, number: int) -> None:
        self._bags[number].clear()
        self._index.bags[number].runs = self._index.bags[number].ids = 0
        self._changed = True


def _merged(runs: Iterable[_Run]) -> _Run:
    all_runs = list(runs)
    return _Run(
        max(run.at_us for run in all_runs),
        np.concatenate([run.ids for run in all_runs]),
        np.concatenate([run.others for run in all_runs]),
    )


class _Workers:
    """The memories of this process's shards that were used last; each used by one thread at a time."""

    def __init__(self) -> None:
        self._kept: collections.OrderedDict[int, tuple[bytes, Remembered]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def take(self, shard: int, token: bytes) -> Remembered | None:
        """Take a shard's memory out, if it is that of the state with this token."""
        with self._lock:
            found = self._kept.pop(shard, None)
        return found[1] if found is not None and found[0] == token else None

    def keep(self, shard: int, token: bytes, remembered: Remembered, max_ids: int) -> None:
        """Keep a shard's memory, and of the others those used last, max_ids in all."""
        with self._lock:
            self._kept[shard] = (token, remembered)
            while sum(len(each) for _, each in self._kept.values()) > max_ids and len(self._kept) > 1:
                self._kept.popitem(last=False)


_WORKERS = _Workers()

"""Lookup: another service is asked about a column's distinct values, side by side, and what it says becomes columns.

Nothing that the service or the user's coroutine does fails or holds up the job for longer than the budget: what has no
answer is a failure of the rows that asked.
"""

import asyncio
import collections
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from millrace.config.expressions import Value
from millrace.transforms.custom.declare import LookupTransform
from millrace.transforms.custom.loop import current_loop, run_in_loop
from millrace.transforms.custom.outcome import Failure, Outcome, Rows, WrongResultError, failure_of
from millrace.transforms.custom.timings import note
from millrace.transforms.steps import with_columns

_GRACE_S = 2.0
"""So much later than its budget a loop that is not blocked has answered."""

_now_s = time.monotonic

Key = tuple[type, Any]
"""With the type, since 1 and True are the same key for a dict, and not for a service."""


class Limits(NamedTuple):
    """See LookupTransform, whose attributes they are."""

    timeout_ms: float
    budget_ms: float
    concurrency: int
    cache_size: int
    cache_ttl_s: float
    give_up_after: int
    pause_s: float


class _Paused(Exception):  # noqa: N818  named as it is shown
    """Not asked: the last calls all failed."""


class Answers:
    """What is known of keys in this process, and the asking. All but `ask` runs in the loop's thread.

    Args:
        make: returns the user's transform, opened; once for each loop.
        limits: see there.
    """

    def __init__(self, make: Callable[[], LookupTransform], limits: Limits) -> None:
        self._make = make
        self._limits = limits
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.ns: list[int] = []

    def ask(self, keys: Sequence[Key]) -> Mapping[Key, Any]:
        """Return for each key its answer: a mapping, None, or what went wrong (an exception)."""
        budget_s = self._limits.budget_ms / 1_000
        try:
            with self._lock:
                loop = current_loop()
                if loop is not self._loop:
                    self._begin(loop)
            found: Mapping[Key, Any] = run_in_loop(loop, self._ask(keys, budget_s), budget_s + _GRACE_S)
        except BaseException as error:  # noqa: BLE001  the user's `start` may raise anything
            return dict.fromkeys(keys, error)
        return found

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        transform = self._make()
        self._cache: collections.OrderedDict[Key, tuple[float, Any]] = collections.OrderedDict()
        self._asked: dict[Key, asyncio.Task[Any]] = {}
        self._failures = 0
        self._paused_until_s = 0.0
        run_in_loop(loop, self._start(transform), self._limits.budget_ms / 1_000 + _GRACE_S)
        self._loop = loop

    async def _start(self, transform: LookupTransform) -> None:
        self._transform = transform
        self._free = asyncio.Semaphore(self._limits.concurrency)
        await asyncio.wait_for(transform.start(), self._limits.budget_ms / 1_000)

    async def _ask(self, keys: Sequence[Key], budget_s: float) -> dict[Key, Any]:
        now_s = _now_s()
        cached = {key: self._cached(key, now_s) for key in keys}
        found: dict[Key, Any] = {key: each[1] for key, each in cached.items() if each is not None}
        missing = [key for key in keys if key not in found]
        tasks = {key: self._asked.get(key) or self._begun(key) for key in missing}
        if tasks:
            await asyncio.wait(tasks.values(), timeout=budget_s)
        for key, task in tasks.items():
            if not task.done():
                task.cancel()
                self._asked.pop(key, None)
                found[key] = TimeoutError()
            elif task.cancelled():  # the budget of another batch that asked, too
                found[key] = TimeoutError()
            else:
                found[key] = task.result()
        return found

    def _cached(self, key: Key, now_s: float) -> tuple[float, Any] | None:
        entry = self._cache.get(key)
        if entry is None or now_s >= entry[0]:
            return None
        self._cache.move_to_end(key)
        return entry

    def _begun(self, key: Key) -> asyncio.Task[Any]:
        task = asyncio.create_task(self._one(key))
        self._asked[key] = task
        return task

    async def _one(self, key: Key) -> Any:
        """Ask about one key; return its answer, or the exception that came instead."""
        try:
            async with self._free:
                if _now_s() < self._paused_until_s:
                    return _Paused()
                began_ns = time.perf_counter_ns()
                answer = await self._called(key[1])
                self.ns.append(time.perf_counter_ns() - began_ns)
            self._judge(answer)
            if not isinstance(answer, BaseException):
                self._cache[key] = (_now_s() + self._limits.cache_ttl_s, answer)
                self._cache.move_to_end(key)
                while len(self._cache) > self._limits.cache_size:
                    self._cache.popitem(last=False)
            return answer
        finally:
            self._asked.pop(key, None)

    async def _called(self, key: Any) -> Any:
        try:
            task = asyncio.ensure_future(self._transform.look_up(key))
        except Exception as error:  # noqa: BLE001  it is no coroutine, or raises before it is one
            return error
        try:
            # Not wait_for: it waits until what it cancels has ended, and a coroutine may refuse to.
            await asyncio.wait({task}, timeout=self._limits.timeout_ms / 1_000)
        finally:
            if not task.done():
                task.cancel()
        if not task.done() or task.cancelled():
            return TimeoutError()
        raised = task.exception()
        if raised is not None:
            return raised
        answer = task.result()
        if answer is None or isinstance(answer, Mapping):
            return answer
        return WrongResultError(f"return a dict of columns or None, not {type(answer).__name__}")

    def _judge(self, answer: Any) -> None:
        if not isinstance(answer, BaseException):
            self._failures = 0
            return
        self._failures += 1
        if self._failures >= self._limits.give_up_after:
            self._failures = self._limits.give_up_after - 1  # after the pause one more failure is enough
            self._paused_until_s = _now_s() + self._limits.pause_s


def run_lookup(answers: Answers, key: Value, batch: pa.RecordBatch, adds: Sequence[pa.Field], name: str) -> Outcome:
    """Ask about a batch's keys; rows whose key has no answer fail, those without a key pass."""
    began_ns = time.perf_counter_ns()
    values = key.values(batch)
    number: dict[Key, int] = {}
    codes = np.array(
        [-1 if value is None else number.setdefault((type(value), value), len(number)) for value in values], np.int64
    )
    found = answers.ask(list(number)) if number else {}
    results = [found[each] for each in number]
    columns, wrong = _columns(results, adds)
    for at, result in enumerate(results):
        if isinstance(result, BaseException):
            wrong[at] = failure_of(0, result)
    good = np.array([at not in wrong for at in range(len(number))] + [True], bool)[codes]
    failed = [wrong[codes[row]]._replace(row=row) for row in np.flatnonzero(~good).tolist()]
    origin: Rows = np.flatnonzero(good)
    rows = batch if good.all() else batch.take(pa.array(origin))
    at = pa.array(codes[origin], mask=codes[origin] < 0)
    rows = with_columns(rows, list(adds), [column.take(at) for column in columns])
    if batch.num_rows:
        note(name, [(time.perf_counter_ns() - began_ns) // batch.num_rows], batch.num_rows)
    return Outcome(rows, origin, failed)


def _columns(results: Sequence[Any], adds: Sequence[pa.Field]) -> tuple[list[pa.Array], dict[int, Failure]]:
    """Return the added columns for each distinct key, and which answers do not fit them."""
    wrong: dict[int, Failure] = {}
    known = {field.name for field in adds}
    for at, result in enumerate(results):
        if isinstance(result, Mapping) and not set(result) <= known:
            wrong[at] = Failure(0, "WrongResult", "the answer has a column that is not in adds", "")
    columns = []
    for field in adds:
        values = [result.get(field.name) if isinstance(result, Mapping) else None for result in results]
        try:
            columns.append(pa.array(values, field.type))
        except Exception:  # noqa: BLE001  it is told value by value
            for at, value in enumerate(values):
                try:
                    pa.array([value], field.type)
                except Exception as error:  # noqa: BLE001
                    wrong.setdefault(
                        at, Failure(0, "WrongResult", f"column {field.name} has to be {field.type}", str(error))
                    )
                    values[at] = None
            columns.append(pa.array(values, field.type))
    return columns, wrong


_ANSWERS: dict[str, Answers] = {}
_ANSWERS_LOCK = threading.Lock()


def answers_here(identity: str, make: Callable[[], LookupTransform], limits: Limits) -> Answers:
    """Return this process's answers of a transform: its threads share the cache and the client."""
    with _ANSWERS_LOCK:
        return _ANSWERS.setdefault(identity, Answers(make, limits))

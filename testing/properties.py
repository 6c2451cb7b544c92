"""Properties: what every transform should do, whatever it is for: it is run on its events in other forms."""

import pickle
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from millrace.schemas.event import ARCHIVE, BATCH
from millrace.testing.builders import WAIT_S, WireEvent, batches_of, with_ids
from millrace.testing.run import Result, run_over, step_of
from millrace.transforms.batches import concat
from millrace.transforms.steps import Step

_ORDERS = 5
_USERS = 50
_COST_ROWS = 2_000
_COST_RUNS = 3
_NEVER_NULL = {field.name for field in (*ARCHIVE, *BATCH) if not field.nullable}


class PropertyError(AssertionError):
    """A transform lacks a property; each line names one, and shows where."""


class Report(NamedTuple):
    """What was found of a transform that has all properties."""

    us_per_event: float
    """Its cost in batches of 2,000 events, on this machine."""
    checked: tuple[str, ...]


def check_properties(
    transform: Any,
    events: Sequence[Mapping[str, Any]],
    *,
    settings: Mapping[str, Any] | None = None,
    when: str = "",
    on_error: str = "",
    but: Sequence[str] = (),
) -> Report:
    """Check that a transform does its work whatever form its events come in.

    | property | what has to hold |
    | --- | --- |
    | accounts | each event goes on, is left out or is a dead letter; once; order_index rises |
    | permuted | any order of arrival gives the same rows |
    | duplicated | copies change nothing |
    | split | wherever batches begin and end, the rows are the same |
    | alone | a user's rows do not hang on other users |
    | late | an event past the order wait gets out, too |
    | nulls | a column that is null is no reason to fail |
    | empty | a batch of nothing has the columns |
    | travels | it can be sent to a worker and does the same there |

    Args:
        transform: see run_transform.
        settings: see there.
        when: see there.
        on_error: see there.
        events: some that it is for; several users and several seconds of them say more.
        but: properties that it need not have.

    Raises:
        PropertyError: it lacks some.
    """
    events = with_ids(events)

    def step() -> Step:
        return step_of(transform, settings=settings, when=when, on_error=on_error)

    expected = run_over(step(), batches_of(events))
    found: list[str] = []
    for name, check in _CHECKS.items():
        if name not in but:
            found += [f"{name}: {problem}" for problem in check(step, events, expected)]
    if found:
        raise PropertyError("\n".join(found))
    return Report(_us_per_event(step(), batches_of(events)), tuple(name for name in _CHECKS if name not in but))


def _us_per_event(step: Step, batches: Sequence[pa.RecordBatch]) -> float:
    """Measure the step in batches as large as a busy job has; what it does once is not counted."""
    rows = sum(batch.num_rows for batch in batches)
    if not rows:
        return 0.0
    large = concat(list(batches) * (_COST_ROWS // rows + 1))
    return min(run_over(step, [large]).us_per_event for _ in range(_COST_RUNS))


_Check = Callable[[Callable[[], Step], Sequence[WireEvent], Result], Iterator[str]]


def _accounts(_: Callable[[], Step], events: Sequence[WireEvent], expected: Result) -> Iterator[str]:
    given = sorted({str(event["messageId"]) for event in events})
    ids = [each for each in expected.batch.column("message_id").to_pylist() if each in set(given)]
    left = sorted([*ids, *expected.dropped, *expected.dead_letters])
    if left != given:
        yield f"given {given}, and by all doors left {left}"
    last: dict[str, int] = {}
    for row in expected.batch.select(["user_key", "order_index", "message_id"]).to_pylist():
        if row["order_index"] <= last.get(row["user_key"], -1):
            yield f"order_index does not rise at {row['message_id']}"
        last[row["user_key"]] = row["order_index"]


def _permuted(step: Callable[[], Step], events: Sequence[WireEvent], expected: Result) -> Iterator[str]:
    for seed in range(_ORDERS):
        shuffled = random.Random(seed).sample(events, len(events))  # noqa: S311  the same every time
        yield from _difference(run_over(step(), batches_of(shuffled)), expected)


def _duplicated(step: Callable[[], Step], events: Sequence[WireEvent], expected: Result) -> Iterator[str]:
    yield from _difference(
        run_over(step(), batches_of([each for event in events for each in (event, event)])), expected
    )


def _split(step: Callable[[], Step], events: Sequence[WireEvent], expected: Result) -> Iterator[str]:
    batches = batches_of(events)
    yield from _difference(run_over(step(), [part for batch in batches for part in _parts(batch)]), expected)
    if batches:
        whole = concat(batches)  # one user's windows side by side, as a larger window has them
        rows = whole.take(pc.sort_indices(whole, [("user_key", "ascending"), ("order_index", "ascending")]))
        yield from _difference(run_over(step(), [rows]), expected)


def _parts(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Yield the smallest batches there may be: a user's events of one µs leave together."""
    places = batch.select(["user_key", "released_at"]).to_pylist()
    starts = [row for row in range(batch.num_rows) if not row or places[row] != places[row - 1]]
    for start, end in zip(starts, [*starts[1:], batch.num_rows], strict=True):
        yield batch.slice(start, end - start)


def _alone(step: Callable[[], Step], events: Sequence[WireEvent], expected: Result) -> Iterator[str]:
    batches = batches_of(events)
    users = sorted({user for batch in batches for user in batch.column("user_key").to_pylist()})
    if not 1 < len(users) <= _USERS:
        return
    results = [
        run_over(step(), [batch.filter(pc.equal(batch.column("user_key"), user)) for batch in batches])
        for user in users
    ]
    together = Result(
        concat([each.batch for each in results]),
        tuple(message_id for each in results for message_id in each.dropped),
        {message_id: text for each in results for message_id, text in each.dead_letters.items()},
        0.0,
    )
    yield from _difference(together, expected)


def _late(step: Callable[[], Step], events: Sequence[WireEvent], expected: Result) -> Iterator[str]:
    if not events:
        return
    delayed = with_ids(events)
    delayed[0].delay_s += WAIT_S + 1
    result = run_over(step(), batches_of(delayed))
    new = set(result.dead_letters) - set(expected.dead_letters)
    if new:
        yield f"{result.dead_letters[min(new)]}"
    yield from _accounts(step, events, result)


def _nulls(step: Callable[[], Step], events: Sequence[WireEvent], expected: Result) -> Iterator[str]:
    batches = batches_of(events)
    if not batches:
        return
    for at, field in enumerate(batches[0].schema):
        if field.name in _NEVER_NULL or all(batch.column(at).null_count == batch.num_rows for batch in batches):
            continue
        without = [batch.set_column(at, field, pa.nulls(batch.num_rows, field.type)) for batch in batches]
        result = run_over(step(), without)
        new = set(result.dead_letters) - set(expected.dead_letters)
        if new or _flags(result) > _flags(expected):
            reason = result.dead_letters[min(new)] if new else "see transform_errors"
            yield f"it fails where {field.name} is null: {reason}"


def _flags(result: Result) -> int:
    at = result.batch.schema.get_field_index("transform_errors")
    return result.batch.num_rows - result.batch.column(at).null_count if at >= 0 else 0


def _empty(step: Callable[[], Step], events: Sequence[WireEvent], expected: Result) -> Iterator[str]:
    batches = batches_of(events)
    if batches:
        result = run_over(step(), [batches[0].slice(0, 0)])
        if result.batch.num_rows or result.batch.schema.names != expected.batch.schema.names:
            yield f"columns {result.batch.schema.names} instead of {expected.batch.schema.names}"


def _travels(step: Callable[[], Step], events: Sequence[WireEvent], expected: Result) -> Iterator[str]:
    try:
        there = pickle.loads(pickle.dumps(step()))  # noqa: S301  our own
    except Exception as error:  # noqa: BLE001  a user's settings may raise anything
        yield f"it cannot be pickled: {type(error).__name__}: {error}"
    else:
        yield from _difference(run_over(there, batches_of(events)), expected)


def _difference(found: Result, expected: Result) -> Iterator[str]:
    """Say what differs first, if anything."""
    if sorted(found.dropped) != sorted(expected.dropped):
        yield f"left out {sorted(found.dropped)} instead of {sorted(expected.dropped)}"
    if sorted(found.dead_letters) != sorted(expected.dead_letters):
        yield f"failed at {sorted(found.dead_letters)} instead of {sorted(expected.dead_letters)}"
    ours, theirs = ({row["message_id"]: row for row in result.batch.to_pylist()} for result in (found, expected))
    if ours.keys() != theirs.keys():
        yield f"rows {sorted(ours)} instead of {sorted(theirs)}"
        return
    for message_id, row in theirs.items():
        for name, value in row.items():
            if ours[message_id].get(name) != value:
                yield f"{name} of {message_id} is {ours[message_id].get(name)!r} instead of {value!r}"
                return


_CHECKS: dict[str, _Check] = {
    "accounts": _accounts,
    "permuted": _permuted,
    "duplicated": _duplicated,
    "split": _split,
    "alone": _alone,
    "late": _late,
    "nulls": _nulls,
    "empty": _empty,
    "travels": _travels,
}

"""Run: a transform over some events, as the job would run it, in this process."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from millrace.config.columns import known_columns
from millrace.config.expressions import compile_expression, compile_value
from millrace.config.transforms import name_of
from millrace.schemas.event import ARCHIVE
from millrace.testing.builders import batches_of
from millrace.transforms.batches import concat
from millrace.transforms.custom.declare import fields_of, kind_of, members_of
from millrace.transforms.custom.find import find
from millrace.transforms.custom.step import CustomStep, limits_of, version_of
from millrace.transforms.steps import Step, Users

Events = Sequence[Mapping[str, Any] | pa.RecordBatch]
"""What the builders make, or ordered batches."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of the events."""

    batch: pa.RecordBatch
    """The rows that go on, in order, with the added columns."""
    dropped: tuple[str, ...]
    """The message ids of those that were left out."""
    dead_letters: Mapping[str, str]
    """Why those that failed did, by message id."""
    us_per_event: float

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows that go on, without the columns that are null."""
        return [{name: value for name, value in row.items() if value is not None} for row in self.batch.to_pylist()]

    def column(self, name: str) -> dict[str, Any]:
        """Return a column's values by message id."""
        return dict(zip(*(self.batch.column(each).to_pylist() for each in ("message_id", name)), strict=True))


def run_transform(  # what a configuration can say
    transform: Any,
    events: Events,
    *,
    settings: Mapping[str, Any] | None = None,
    when: str = "",
    on_error: str = "",
    users: Users | None = None,
    **limits: float,
) -> Result:
    """Run a transform over events.

    Args:
        transform: a class or a decorated function of `millrace.api`, `module:Name`, or any step of the job.
        events: what the builders of this package return, in any order of arrival; or batches.
        settings: as `with:` in millrace.yaml.
        when: as in millrace.yaml.
        on_error: dead_letter or pass; blank: the default of its kind. Here a message has the exception's own text.
        users: what is remembered of users, to go on with; changed in place.
        limits: of a lookup, as in millrace.yaml.

    Raises:
        TypeError: it is no transform.
        ExpressionError: `when` cannot be used.
        CannotOpenError: the transform's `open` raised.
    """
    step = step_of(transform, settings=settings, when=when, on_error=on_error, **limits)
    return run_over(step, as_batches(events), users)


def as_batches(events: Events) -> list[pa.RecordBatch]:
    """Return events as ordered batches."""
    batches = [each for each in events if isinstance(each, pa.RecordBatch)]
    return batches or batches_of([each for each in events if isinstance(each, Mapping)])


def run_over(step: Step, batches: Sequence[pa.RecordBatch], users: Users | None = None) -> Result:
    """Run a step over ordered batches of one shard."""
    step.open()
    users = Users() if users is None else users
    kept: list[pa.RecordBatch] = []
    dropped: list[str] = []
    letters: dict[str, str] = {}
    ns = 0
    for batch in batches:
        ids = batch.column("message_id").to_pylist()
        began = time.perf_counter_ns()
        applied = step.apply(batch, users)
        ns += time.perf_counter_ns() - began
        kept.append(applied.batch)
        dropped += [ids[row] for row in applied.dropped]
        letters |= {ids[each.row]: each.message for each in applied.refused}
    total = sum(batch.num_rows for batch in batches)
    empty = pa.RecordBatch.from_pylist([], schema=pa.schema([*ARCHIVE, *step.adds]))
    return Result(concat(kept) if kept else empty, tuple(dropped), letters, ns / 1_000 / max(1, total))


def step_of(transform: Any, *, settings: Mapping[str, Any] | None, when: str, on_error: str, **limits: float) -> Step:
    """Return a transform as the step that millrace.yaml would make of it."""
    if isinstance(transform, Step):
        return transform
    use = transform if isinstance(transform, str) else f"{transform.__module__}:{transform.__qualname__}"
    target = find(use) if isinstance(transform, str) else transform
    kind = kind_of(target)
    if kind is None:
        raise TypeError(f"{use} is no transform: see millrace.api")
    members, schema = members_of(target), known_columns()
    passes = (on_error or ("pass" if kind == "lookup" else "dead_letter")) == "pass"
    return CustomStep(
        name=name_of(use),
        use=use,
        kind=kind,
        own=fields_of(members.adds),
        version=version_of(target, members.version),
        settings=settings or {},
        when=compile_expression(when, schema) if when else None,
        passes=passes,
        flags=passes,
        with_text=True,
        remembers_s=float(members.remembers_s) if kind == "user" else 0.0,
        key=compile_value(members.key, schema) if kind == "lookup" else None,
        limits=limits_of(members, limits) if kind == "lookup" else None,
        target=target,
    )

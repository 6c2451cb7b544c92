"""Step: a user's transform as a step of the job: for which rows, with which settings, and what if it fails."""

import dataclasses
import functools
import importlib.metadata
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.config.expressions import Expression, Value
from millrace.schemas.dead_letter import Reason
from millrace.transforms.counts import count
from millrace.transforms.custom.declare import ERRORS, LookupTransform, make
from millrace.transforms.custom.find import NotFoundError, find
from millrace.transforms.custom.lookup import Limits, answers_here, run_lookup
from millrace.transforms.custom.outcome import Failure, Outcome, Rows, in_place, joined
from millrace.transforms.custom.per_batch import run_batch
from millrace.transforms.custom.per_event import PerUser, run_events, state_bytes
from millrace.transforms.custom.timings import STAGE, timings
from millrace.transforms.steps import Applied, CannotOpenError, Refused, Step, Users, all_here, with_columns


@dataclasses.dataclass
class CustomStep(Step):
    """One entry of `transforms:`; made by config/transforms.py.

    Args:
        name: of the entry.
        use: `module:Name`, or the name of an entry point; found again in each process.
        kind: event, batch, user or lookup.
        own: the columns that the transform declares.
        shared: those of them that an entry before this one, of the same transform, declares.
        version: of the transform.
        settings: its arguments.
        when: for which rows; None: all.
        passes: a row at which it fails goes on, flagged; else it becomes a dead letter.
        flags: this step declares the column of flags (the first of those that may need it).
        with_text: messages have the exceptions' own text, which may hold users' data.
        remembers_s: of a user's state.
        recalls: the columns that rebuild it.
        later: the names of the entries from this one on: what they made of archived events is not recalled.
        key: of a lookup: what is asked for.
        limits: of a lookup.
        target: instead of `use`, the class or function itself: for tests.
    """

    name: str
    use: str
    kind: str
    own: tuple[pa.Field, ...] = ()
    shared: tuple[str, ...] = ()
    version: str = "0"
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    when: Expression | None = None
    passes: bool = False
    flags: bool = False
    with_text: bool = False
    remembers_s: float = 0.0
    recalls: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    key: Value | None = None
    limits: Limits | None = None
    target: Any = None

    def __post_init__(self) -> None:
        self._opened: Any = None

    @property
    def adds(self) -> tuple[pa.Field, ...]:  # type: ignore[override]  # the base has a plain attribute
        own = tuple(field for field in self.own if field.name not in self.shared)
        return (*own, ERRORS) if self.flags else own

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def versions(self) -> Mapping[str, str]:
        """Name the transform and its version: they go into the rows' lineage."""
        return {self.name: self.version}

    def open(self) -> None:
        if self._opened is not None:
            return
        if self.kind == "lookup":
            assert self.limits is not None
            identity = msgspec.json.encode([self.name, self.use, repr(self.target), repr(self.settings)]).decode()
            self._made()  # what it lacks is said at the start
            self._opened = answers_here(identity, self._made, self.limits)
            return
        made = self._made()
        if self.kind == "user":
            self._opened = PerUser(made, self.name, round(self.remembers_s * 1_000_000))
            timings(self.name).state = _StateOf(self.name)
        else:
            self._opened = made

    def _made(self) -> Any:
        try:
            made = make(self.target or find(self.use), self.settings)
            made.open()
        except NotFoundError as error:
            raise CannotOpenError(
                f"transform {self.name}: {error}. On workers it has to be installed with the job (docs/transforms.md)."
            ) from error
        except Exception as error:
            raise CannotOpenError(f"transform {self.name} cannot be opened: {type(error).__name__}: {error}") from error
        return made

    def apply(self, batch: pa.RecordBatch, users: Users) -> Applied:
        self.open()
        selected = None if self.when is None else self.when.mask(batch)
        chosen = np.arange(batch.num_rows) if selected is None else np.flatnonzero(selected)
        given = batch if len(chosen) == batch.num_rows else batch.take(pa.array(chosen))
        outcome = self._outcome(given, users)
        flags = (ERRORS,) if self.passes else ()
        schema = pa.schema([*batch.schema, *(f for f in (*self.own, *flags) if f.name not in batch.schema.names)])
        parts = [(outcome.batch, chosen[outcome.origin])]
        if given is not batch:
            rest = np.flatnonzero(pc.invert(selected))
            parts.append((batch.take(pa.array(rest)), rest))
        failed = [failure._replace(row=int(chosen[failure.row])) for failure in outcome.failed]
        refused: list[Refused] = []
        if self.passes and failed:
            count(STAGE, f"{self.name}_passed", len(failed))
            parts.append(self._flagged(batch, failed))
        else:
            refused = [Refused(each.row, Reason.TRANSFORM_FAILED, self._message(each)) for each in failed]
        rows, origin = joined(schema, parts)
        if (np.diff(origin) == 0).any():
            rows = in_place(rows)
        return Applied(rows, refused, [int(chosen[row]) for row in outcome.dropped])

    def _outcome(self, batch: pa.RecordBatch, users: Users) -> Outcome:
        match self.kind:
            case "event":
                return run_events(self._opened, batch, self.own, self.name)
            case "batch":
                return run_batch(self._opened, batch, self.own, self.name)
            case "user":
                outcome: Outcome = self._opened.run(batch, users, self.own)
                return outcome
        assert self.key is not None
        return run_lookup(self._opened, self.key, batch, self.own, self.name)

    def _flagged(self, batch: pa.RecordBatch, failed: Sequence[Failure]) -> tuple[pa.RecordBatch, Rows]:
        failed = sorted(failed, key=_row_of)
        origin = np.array([each.row for each in failed], np.int64)
        rows = batch.take(pa.array(origin))
        at = rows.schema.get_field_index(ERRORS.name)
        before = rows.column(at).to_pylist() if at >= 0 else [None] * len(failed)
        flags = [
            msgspec.json.encode([*(msgspec.json.decode(old) if old else []), self._flag(each)]).decode()
            for old, each in zip(before, failed, strict=True)
        ]
        return with_columns(rows, [ERRORS], [flags]), origin

    def _flag(self, failure: Failure) -> dict[str, str]:
        flag = {"transform": self.name, "version": self.version, "error": failure.error, "at": failure.at}
        return flag | ({"text": failure.text} if self.with_text else {})

    def _message(self, failure: Failure) -> str:
        text = f": {failure.text}" if self.with_text and failure.text else ""
        return f"{self.name} {self.version}: {failure.error}{text}" + (f" ({failure.at})" if failure.at else "")

    def recall(self, batch: pa.RecordBatch, users: Users) -> None:
        """Let the class see archived events again, and forget what it makes of them."""
        self.open()
        rows = batch.filter(pc.invert(self.made(batch.column("message_id"))))
        if self.when is not None:
            rows = rows.filter(self.when.mask(rows))
        self._opened.recall(rows, users, self.own)

    def made(self, message_ids: pa.Array) -> pa.Array:
        """Return which events this transform, or one behind it, split from another one."""
        names = "|".join(map(re.escape, dict.fromkeys((self.name, *self.later))))
        return pc.match_substring_regex(message_ids, f"/({names})/[0-9]+(/|$)")


def _row_of(failure: Failure) -> int:
    return failure.row


@dataclasses.dataclass(frozen=True)
class _StateOf:
    transform: str

    def __call__(self) -> tuple[int, int]:
        return state_bytes(all_here(self.transform))


def version_of(target: Any, declared: str) -> str:
    """Return a transform's version: what it declares, else its package's; "0" where neither says one."""
    if declared:
        return declared
    file = getattr(sys.modules.get(target.__module__), "__file__", None)
    for name in _distributions().get(str(target.__module__).partition(".")[0], ()) if file else ():
        found = importlib.metadata.distribution(name)
        editable = '"editable": true' in (found.read_text("direct_url.json") or "")
        if editable or Path(str(file)).is_relative_to(Path(str(found.locate_file("")))):
            return found.version
    return "0"


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()  # reads the files of all that is installed


def limits_of(members: type[LookupTransform], given: Mapping[str, Any]) -> Limits:
    """Return a lookup's limits: what the entry gives, else what the transform declares."""
    return Limits(**{name: given.get(name, getattr(members, name)) for name in Limits._fields})

"""Validation: events are held against the contracts of the tracking plan; what violates them is told, value by value.

An event that keeps its contract costs one decode. Only one that does not is looked at closely.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millrace.schemas.contracts import (
    ADDED,
    PLANNED_TYPES,
    TRAITS,
    VERSION,
    VERSION_FIELD,
    Checker,
    Contracts,
    Policy,
    Versions,
    compiled,
    version_key,
    violations_text,
)
from millrace.schemas.dead_letter import Reason
from millrace.schemas.violations import Kind, Violation
from millrace.transforms.batches import codes
from millrace.transforms.context_parts import named_version, traits_in, with_traits
from millrace.transforms.steps import Refused, with_columns

Rows = npt.NDArray[np.int64]


class Validated(NamedTuple):
    """What came of a batch; each row leaves by one door."""

    batch: pa.RecordBatch
    """The rows that go on, with `contract` and `violations`."""
    refused: list[Refused]
    """Rows of the batch given."""
    kinds: Counter[Kind]
    """How many violations of each kind there were."""


def validate(batch: pa.RecordBatch, contracts: Contracts) -> Validated:
    """Hold each event of a batch against its contract.

    Args:
        batch: schemas.event.BATCH, and whatever stages have added.
        contracts: the plan, and what becomes of what violates it.
    """
    work = _Work(batch)
    for rows, policy, versions in _groups(batch, contracts):
        if versions is None:
            work.unplanned(rows, policy, [event for _, event in compiled(contracts.contracts) if event is not None])
            continue
        named = work.versions_named(rows)
        if named:
            rows = rows[~np.isin(rows, list(named))]  # noqa: PLW2901
        work.hold(rows, policy, versions.newest)
        for row, version in named.items():
            checker = versions.all.get(version_key(version)) if VERSION.fullmatch(version) else None
            if checker is None:
                work.unknown_version(row, policy, versions)
            else:
                work.hold(np.array([row]), policy, checker)
    return work.done()


def _groups(batch: pa.RecordBatch, contracts: Contracts) -> Iterator[tuple[Rows, Policy, Versions | None]]:
    """Yield rows that have policy and contract in common; None: they need one and have none. Others are left out."""
    plan = compiled(contracts.contracts)
    kinds, kind_of = codes(batch.column("type"))
    names, name_of = codes(pc.fill_null(batch.column("event"), ""))
    sources, source_of = codes(batch.column("source_id"))
    subject_of, subjects = codes(pa.array((kinds * len(name_of) + names) * len(source_of) + sources))
    kind_texts, name_texts, source_texts = (each.to_pylist() for each in (kind_of, name_of, source_of))
    groups: dict[tuple[Policy, int], tuple[int, Policy, Versions | None]] = {}
    group_of_subject = [-1] * len(subjects)
    for number, code in enumerate(subjects.to_pylist()):
        rest, source = divmod(code, len(source_texts))
        kind, name = divmod(rest, len(name_texts))
        kind, name, source = kind_texts[kind], name_texts[name], source_texts[source]
        if kind != "track" and kind not in PLANNED_TYPES:
            continue
        versions = plan.get((kind, name if kind == "track" else None))
        if versions is not None:
            policy = contracts.policy_of(source, versions.newest.contract.title)
        elif kind == "track":
            policy = contracts.unplanned_of(source)
        else:
            continue
        if policy is not Policy.OFF:
            group = groups.setdefault((policy, id(versions)), (len(groups), policy, versions))
            group_of_subject[number] = group[0]
    # Numbers of 16 bits are sorted in linear time.
    group_of = np.array(group_of_subject, np.int16 if len(groups) < 1 << 15 else np.int64)[subject_of]
    by_group = np.argsort(group_of, kind="stable")
    starts = np.searchsorted(group_of[by_group], np.arange(len(groups) + 1))
    for number, policy, versions in groups.values():
        yield by_group[starts[number] : starts[number + 1]], policy, versions


class _Work:
    """A batch on its way: what is known of its rows so far."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch
        self._contract_of = np.full(batch.num_rows, -1, np.int64)
        self._contracts: list[str] = []
        self._violations: dict[int, str] = {}
        self._replaced: dict[str, dict[int, bytes | None]] = {}
        self._refused: list[Refused] = []
        self._kinds: Counter[Kind] = Counter()
        self._any_version = _mentions(batch.column("context_rest"), b'"event_version"')

    def versions_named(self, rows: Rows) -> dict[int, str]:
        """Return the versions that some of the rows name."""
        if not self._any_version:
            return {}
        texts = self._batch.column("context_rest").take(pa.array(rows))
        hits = np.flatnonzero(
            pc.fill_null(pc.match_substring(texts, '"event_version"'), False).to_numpy(zero_copy_only=False)
        )
        found = {}
        for hit in hits.tolist():
            version = named_version(texts[hit].as_py())
            if version is not None:
                found[int(rows[hit])] = version
        return found

    def hold(self, rows: Rows, policy: Policy, checker: Checker) -> None:
        """Hold rows against a contract."""
        self._contract_of[rows] = len(self._contracts)
        self._contracts.append(checker.contract.name)
        where, texts = self._texts(rows, checker.contract.type)
        for number in checker.suspects(texts):
            found, stripped = checker.check(texts[number], strip=policy is Policy.STRIP)
            if not found:
                continue
            row = int(rows[number])
            self._violated([row], policy, found, checker.contract.name)
            if policy is Policy.STRIP and stripped is not texts[number]:
                self._replace(row, where[number] if where else checker.contract.column, stripped)

    def unplanned(self, rows: Rows, policy: Policy, titles: Sequence[str]) -> None:
        """Note that rows have no contract and need one."""
        near = {_plain(title): title for title in titles}
        number_of, names = codes(pc.fill_null(self._batch.column("event").take(pa.array(rows)), ""))
        by_name = np.argsort(number_of, kind="stable")
        ends = np.cumsum(np.bincount(number_of, minlength=len(names)))
        for name, part in zip(names.to_pylist(), np.split(rows[by_name], ends[:-1]), strict=True):
            meant = near.get(_plain(name))
            expected = f"an event of the plan, such as {meant}" if meant else "an event of the plan"
            violation = Violation(Kind.UNPLANNED_EVENT, "event", "string" if name else "missing", expected)
            self._violated(part.tolist(), policy, [violation], "no contract")

    def unknown_version(self, row: int, policy: Policy, versions: Versions) -> None:
        """Note that a row names a version that the plan does not have."""
        known = ", ".join(versions.all[key].contract.version for key in sorted(versions.all))
        violation = Violation(Kind.UNPLANNED_EVENT, VERSION_FIELD, "unknown version", f"one of {known}")
        self._violated([row], policy, [violation], versions.newest.contract.folder)

    def done(self) -> Validated:
        """Return the batch with what was found."""
        batch = self._batch
        for name, texts in self._replaced.items():
            mask = np.zeros(batch.num_rows, np.bool_)
            mask[list(texts)] = True
            values = pa.array([texts[row] for row in sorted(texts)], pa.string())
            column = pc.replace_with_mask(batch.column(name), pa.array(mask), values)
            batch = with_columns(batch, [batch.schema.field(name)], [column])
        numbers = pa.array(self._contract_of, mask=self._contract_of < 0)
        contract = pa.array(self._contracts, pa.string()).take(numbers)
        violations: list[str | None] = [None] * batch.num_rows
        for row, text in self._violations.items():
            violations[row] = text
        batch = with_columns(batch, ADDED, [contract, pa.array(violations, pa.string())])
        if self._refused:
            kept = np.ones(batch.num_rows, np.bool_)
            kept[[each.row for each in self._refused]] = False
            batch = batch.filter(pa.array(kept))
        return Validated(batch, sorted(self._refused, key=lambda each: each.row), self._kinds)

    def _violated(self, rows: Sequence[int], policy: Policy, found: list[Violation], contract: str) -> None:
        for each in found:
            self._kinds[each.kind] += len(rows)
        if policy is Policy.DEAD_LETTER:
            first = found[0]
            more = f"; {len(found) - 1} more" if len(found) > 1 else ""
            message = f"{contract}: {first.kind.value} {first.field}: found {first.found}, expected {first.expected}"
            self._refused += [Refused(row, Reason.CONTRACT_VIOLATED, message + more) for row in rows]
        else:
            self._violations |= dict.fromkeys(rows, violations_text(found))

    def _texts(self, rows: Rows, kind: str) -> tuple[list[str], Any]:
        """Return where each row's text is, if not all are in one column, and the texts; `{}` where there is none."""
        name = "traits" if kind in TRAITS else "properties"
        column = self._batch.column(name).take(pa.array(rows))
        texts = pc.fill_null(column, "{}").cast(pa.binary()).to_numpy(zero_copy_only=False)
        if kind != "identify" or not column.null_count:
            return [], texts
        # RudderStack's SDKs send the traits of an identify in its context.
        where = [name] * len(rows)
        for number in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)).tolist():
            traits = traits_in(self._batch.column("context_rest")[int(rows[number])].as_py())
            if traits is not None:
                where[number], texts[number] = "context_rest", traits
        return where, texts

    def _replace(self, row: int, name: str, stripped: bytes) -> None:
        if name == "context_rest":
            stripped = with_traits(self._batch.column(name)[row].as_py(), stripped)
        self._replaced.setdefault(name, {})[row] = None if stripped == b"null" else stripped


def _mentions(column: pa.Array, word: bytes) -> bool:
    """Tell whether a word may be in a text column: a look at all its bytes at once is ten times as fast as by row."""
    data = column.buffers()[2]
    return data is not None and word in data.to_pybytes()


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))

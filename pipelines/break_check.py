"""Break check: what a plan's newest versions would have broken of the archive, and whether they read older data."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import avro.schema
import pyarrow as pa
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType

from millrace.schemas.contracts import Contract, Contracts, Policy, version_key
from millrace.schemas.violations import Kind
from millrace.transforms.validation import validate

COLUMNS = ("message_id", "type", "event", "source_id", "properties", "traits", "context_rest")
"""What is read of the archive."""


class Said(NamedTuple):
    """One way to break."""

    field: str
    what: str
    """`is null, expected double`."""


class Broken(NamedTuple):
    """How often, and one of them."""

    events: int
    message_id: str
    """The least of all."""


class Verdict(NamedTuple):
    """What there is to say of one event of the plan."""

    newest: Contract
    previous: Contract | None
    events: int
    """Held against the newest version."""
    broken: int
    """Of them, how many would have violated it, and keep the previous one."""
    ways: Mapping[Said, Broken]
    incompatible: tuple[str, ...]
    """Why the newest version cannot read what the previous one wrote, by Avro's rules; empty: it can."""


class Report(NamedTuple):
    """What there is to say of a plan."""

    verdicts: tuple[Verdict, ...]
    unplanned: Mapping[str, int]
    """Track events without a contract, by name."""


def examine(plan: tuple[Contract, ...], batches: Iterable[pa.RecordBatch]) -> Report:
    """Hold rows of the archive (the columns of COLUMNS) against the newest versions of a plan, and those before them.

    Events that name a version are held against that; so an older one of theirs breaks by nothing newer.
    """
    by_folder: dict[str, list[Contract]] = {}
    for contract in plan:
        by_folder.setdefault(contract.folder, []).append(contract)
    for versions in by_folder.values():
        versions.sort(key=lambda each: version_key(each.version))
    before = tuple(each for versions in by_folder.values() for each in versions[:-1])
    events: Counter[str] = Counter()
    broken: Counter[str] = Counter()
    unplanned: Counter[str] = Counter()
    ways: dict[str, dict[Said, Broken]] = {}
    for batch in batches:
        now = validate(batch, Contracts(plan)).batch.select(["contract", "violations", "message_id", "event"])
        old = validate(batch, Contracts(before, unplanned=Policy.OFF)).batch.column("violations").to_pylist()
        events.update(now.column("contract").drop_null().to_pylist())
        suspects = now.append_column("old", pa.array(old, pa.string()))
        suspects = suspects.filter(suspects.column("violations").is_valid())
        for row in suspects.to_pylist():
            found = json.loads(row["violations"])
            if found[0]["kind"] == Kind.UNPLANNED_EVENT.value:
                unplanned[row["event"] or ""] += found[0]["field"] == "event"
                continue
            if row["old"] and json.loads(row["old"])[0]["kind"] != Kind.UNPLANNED_EVENT.value:
                continue  # it was broken before
            broken[row["contract"]] += 1
            of_contract = ways.setdefault(row["contract"], {})
            for said in {_said(each) for each in found}:
                seen = of_contract.get(said, Broken(0, row["message_id"]))
                of_contract[said] = Broken(seen.events + 1, min(seen.message_id, row["message_id"]))
    verdicts = []
    for versions in by_folder.values():
        newest, previous = versions[-1], versions[-2] if len(versions) > 1 else None
        verdicts.append(
            Verdict(
                newest,
                previous,
                events[newest.name],
                broken[newest.name],
                ways.get(newest.name, {}),
                incompatibilities(newest, previous) if previous else (),
            )
        )
    return Report(tuple(verdicts), +unplanned)


def incompatibilities(newest: Contract, previous: Contract) -> tuple[str, ...]:
    """Return why a reader with the newest schema cannot read what was written with the previous one (BACKWARD)."""
    reader, writer = _parsed(newest), _parsed(previous)
    why = _why_not(reader, writer)
    if not why:
        return ()
    # The library does not always say in which field.
    written = {field.name: field.type for field in writer.fields}
    of_fields = [
        f"{field.name}: {said}"
        for field in reader.fields
        if field.name in written and (said := _why_not(field.type, written[field.name]))
    ]
    of_fields += [
        f"{field.name}: is new and has no default"
        for field in reader.fields
        if field.name not in written and not field.has_default
    ]
    return tuple(of_fields) or (why,)


def _parsed(contract: Contract) -> avro.schema.RecordSchema:
    parsed = avro.schema.parse(contract.schema)
    assert isinstance(parsed, avro.schema.RecordSchema)  # the plan was read
    return parsed


def _why_not(reader: avro.schema.Schema, writer: avro.schema.Schema) -> str:
    found = ReaderWriterCompatibilityChecker().get_compatibility(reader, writer)  # type: ignore[no-untyped-call]
    if found.compatibility is SchemaCompatibilityType.compatible:
        return ""
    kinds = ", ".join(sorted({each.name.replace("_", " ") for each in found.incompatibilities}))
    return f"{kinds} ({'; '.join(sorted(found.messages))})"


def _said(violation: Mapping[str, str]) -> Said:
    """Say what is wrong in a few words; items of a list are one field."""
    path = violation["field"].partition(".")[2] or violation["field"]
    field = "".join(part.partition("]")[1] and "[]" + part.partition("]")[2] if number and part[:1].isdigit() else
                    ("[" if number else "") + part for number, part in enumerate(path.split("[")))  # fmt: skip
    match Kind(violation["kind"]):
        case Kind.MISSING_FIELD:
            return Said(field, f"is missing, expected {violation['expected']}")
        case Kind.EXTRA_FIELD:
            return Said(field, f"is no field of it (found {violation['found']})")
        case _:
            return Said(field, f"is {violation['found']}, expected {violation['expected']}")

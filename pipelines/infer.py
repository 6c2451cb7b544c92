"""Infer: what the archive's events look like, as proposed contracts; the same rows give the same, in any order."""

import datetime as dt
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import pyarrow as pa

from millrace.schemas.contracts import PLANNED_TYPES, TRAITS, Contract, event_of_folder, folder_of_event, version_key

COLUMNS = ("type", "event", "properties", "traits", "context_rest")
"""What is read of the archive."""

MOST_KEYS = 200
"""An object with more different keys than this has data as keys: it becomes a map."""

_TIME = {"type": "long", "logicalType": "timestamp-micros"}
_LONG = range(-(2**63), 2**63)
_Subject = tuple[str, str | None]


class Seen:
    """The values seen at one place: how many, of which kinds, and what is inside."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.only_times = True
        self.members: dict[str, Seen] = {}
        self.values: Seen | None = None
        """Of a map, all values; then there are no members."""
        self.items: Seen | None = None

    def add(self, value: Any) -> None:
        """Take in one JSON value."""
        kind = _kind(value)
        self.kinds[kind] += 1
        if kind == "string":
            self.only_times = self.only_times and _is_time(value)
        elif kind == "array":
            self.items = self.items or Seen()
            for each in value:
                self.items.add(each)
        elif kind == "object":
            for key, each in value.items():
                (self.values or self.members.setdefault(key, Seen())).add(each)
                if len(self.members) > MOST_KEYS:
                    self._become_map()

    def _become_map(self) -> None:
        self.values = Seen()
        for each in self.members.values():
            self.values.merge(each)
        self.members = {}

    def merge(self, other: "Seen") -> None:
        """Take in what another place has seen."""
        self.kinds += other.kinds
        self.only_times = self.only_times and other.only_times
        if other.items:
            self.items = self.items or Seen()
            self.items.merge(other.items)
        if other.values and not self.values:
            self._become_map()
        for key, each in other.members.items():
            (self.values or self.members.setdefault(key, Seen())).merge(each)
        if self.values and other.values:
            self.values.merge(other.values)
        elif len(self.members) > MOST_KEYS:
            self._become_map()


def see(batches: Iterable[pa.RecordBatch]) -> dict[_Subject, Seen]:
    """Look at rows of the archive (the columns of COLUMNS); return what was seen of each (type, event)."""
    found: dict[_Subject, Seen] = {}
    for batch in batches:
        for kind, event, properties, traits, rest in zip(
            *(batch.column(name).to_pylist() for name in COLUMNS), strict=True
        ):
            if kind not in ("track", *PLANNED_TYPES) or (kind == "track" and not event):
                continue
            text = traits if kind in TRAITS else properties
            try:
                value = msgspec.json.decode(text) if text else {}
                if kind == "identify" and text is None and rest:
                    value = msgspec.json.decode(rest).get("traits", {})
            except (msgspec.DecodeError, RecursionError):  # not from decode, which lets nothing such pass
                continue
            if isinstance(value, dict):
                found.setdefault((kind, event if kind == "track" else None), Seen()).add(value)
    return found


def folders_of(subjects: Iterable[_Subject], plan: Iterable[Contract] = ()) -> dict[_Subject, str]:
    """Return a folder for each (type, event): that of the plan, or a free one."""
    known: dict[_Subject, str] = {(each.type, each.event): each.folder for each in plan}
    taken = set(known.values())
    found = {}
    for kind, event in sorted(subjects, key=lambda each: (each[0], each[1] or "")):
        folder = known.get((kind, event))
        if folder is None:
            base = f"_{kind}" if event is None else folder_of_event(event)
            numbered = (base, *(f"{base}_{number}" for number in range(2, len(taken) + 3)))
            folder = next(each for each in numbered if each not in taken)
            taken.add(folder)
        found[kind, event] = folder
    return found


def propose(seen: Seen, folder: str, event: str | None, required_share: float) -> dict[str, Any]:
    """Return the Avro schema that fits what was seen.

    Args:
        seen: of the objects of one event.
        folder: names the record.
        event: its exact name; None: of a type.
        required_share: a field that is there, and not null, in at least this share of the events is required.
    """
    rows = seen.kinds["object"]
    writer = _Writer(required_share)
    proposed: dict[str, Any] = {
        "type": "record",
        "name": writer.name(event_of_folder(folder.strip("_")).replace(" ", "")),
    }
    if event is not None:
        proposed["event"] = event
    if seen.values is not None:  # data as keys: there are no fields to list
        proposed["open"] = True
    return proposed | {"doc": f"Proposed from {rows:,} events.", "fields": writer.fields(seen, proposed["name"])}


class _Writer:
    def __init__(self, required_share: float) -> None:
        self._required_share = required_share
        self._names: set[str] = set()

    def name(self, wanted: str) -> str:
        """Return a name for a type, that no other of the schema has."""
        plain = _avro_name(wanted)
        name = next(each for each in (plain, *(f"{plain}{n}" for n in range(2, len(self._names) + 3)))
                    if each not in self._names)  # fmt: skip
        self._names.add(name)
        return name

    def fields(self, seen: Seen, inside: str) -> list[dict[str, Any]]:
        objects = seen.kinds["object"]
        written: list[dict[str, Any]] = []
        names: set[str] = set()
        for key, value in sorted(seen.members.items()):
            plain = _avro_name(key)
            name = next(each for each in (plain, *(f"{plain}_{n}" for n in range(2, len(names) + 3)))
                        if each not in names)  # fmt: skip
            names.add(name)
            there = value.kinds.total() - value.kinds["null"]
            required = there >= self._required_share * objects and there > 0
            field: dict[str, Any] = {"name": name} | ({"key": key} if key != name else {})
            types = self._types(value, f"{inside}{_camel(key)}")
            field |= {"type": _union(types)} if required else {"type": ["null", *types], "default": None}
            written.append(field | {"doc": f"In {_percent(there, objects)} of {objects:,}."})
        return written

    def _types(self, seen: Seen, name: str) -> list[Any]:
        """Return the types seen, without null, in a fixed order; `string` where there was only null."""
        types: list[Any] = []
        if seen.kinds["boolean"]:
            types.append("boolean")
        if seen.kinds["number"]:
            types.append("double")
        elif seen.kinds["whole"]:
            types.append("long")
        if seen.kinds["string"]:
            types.append(_TIME if seen.only_times else "string")
        if seen.kinds["array"]:
            items = self._types(seen.items, f"{name}Item") if seen.items else ["string"]
            with_null = ["null", *items] if seen.items is None or seen.items.kinds["null"] else items
            types.append({"type": "array", "items": _union(with_null)})
        if seen.kinds["object"]:
            types.append(self._object(seen, name))
        return types or ["string"]

    def _object(self, seen: Seen, name: str) -> dict[str, Any]:
        if seen.values is not None:
            values = self._types(seen.values, f"{name}Value")
            return {"type": "map", "values": _union(["null", *values] if seen.values.kinds["null"] else values)}
        own = self.name(name)
        return {"type": "record", "name": own, "fields": self.fields(seen, own)}


def next_version(proposed: Mapping[str, Any], versions: Iterable[Contract]) -> str | None:
    """Return the version to write a proposal as; None where the newest says the same but for its docs."""
    newest = max(versions, key=lambda each: version_key(each.version), default=None)
    if newest is None:
        return "1"
    if _without_docs(json.loads(newest.schema)) == _without_docs(proposed):
        return None
    return str(version_key(newest.version)[0] + 1)


def _without_docs(schema: Any) -> Any:
    if isinstance(schema, Mapping):
        return {key: _without_docs(value) for key, value in schema.items() if key != "doc"}
    return [_without_docs(each) for each in schema] if isinstance(schema, list) else schema


def lines(schema: Any) -> Iterator[str]:
    """Yield a schema as lines, a field each: what a person likes to read and a diff likes to compare."""
    head = [
        f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
        for key, value in schema.items()
        if key != "fields"
    ]
    yield "{"
    for each in head:
        yield f"  {each},"
    yield '  "fields": ['
    fields = [json.dumps(field, ensure_ascii=False) for field in schema["fields"]]
    yield from (f"    {field}{',' if number < len(fields) else ''}" for number, field in enumerate(fields, 1))
    yield "  ]"
    yield "}"


def _union(types: list[Any]) -> Any:
    return types[0] if len(types) == 1 else types


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "whole" if value in _LONG else "number"
    if isinstance(value, float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _is_time(text: str) -> bool:
    if len(text) < 19 or text[4] != "-":
        return False
    try:
        msgspec.convert(text, dt.datetime)
    except msgspec.ValidationError:
        return False
    return True


def _avro_name(key: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_]", "_", key)
    return plain if re.match(r"[A-Za-z_]", plain) else f"_{plain}"


def _camel(key: str) -> str:
    return "".join(word[0].upper() + word[1:] for word in re.split(r"[^A-Za-z0-9]+", key) if word) or "Field"


def _percent(part: int, whole: int) -> str:
    """Return a share so that only all is 100 %.

    >>> _percent(9_999_999, 10_000_000)
    '99.9 %'
    """
    if part == whole:
        return "100 %"
    return f"{min(max(round(100 * part / whole, 1), 0.1 if part else 0.0), 99.9)} %"

"""The tracking plan on disk: a folder of contracts, `<event_name>/<version>.avsc`; every mistake with its line."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
from fastavro.schema import SchemaParseException, UnknownType

from millrace.schemas.avro_json import SchemaError, read_schema
from millrace.schemas.contracts import (
    FOLDER,
    PLANNED_TYPES,
    VERSION,
    Contract,
    event_of_folder,
    folder_of_event,
    version_key,
)

_MOST_BYTES = 1 << 20


class PlanError(Exception):
    """A plan has mistakes. Its text has a line for each: `FILE:LINE: what is wrong; what to do`."""

    def __init__(self, mistakes: list[str]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(mistakes))


def read_plan(folder: Path) -> tuple[Contract, ...]:
    """Read a folder of contracts; names that begin with a dot, and files that are no .avsc, are not looked at.

    Raises:
        PlanError: it cannot be read, or has mistakes: all of them.
    """
    mistakes: list[str] = []
    try:
        folders = sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
        files = [file for each in folders for file in sorted(each.glob("*.avsc"))]
        loose = sorted(folder.glob("*.avsc"))
    except OSError as error:
        said = f"{folder}: cannot be read: {error.strerror}; give the folder that has a folder for each event"
        raise PlanError([said]) from error
    mistakes += [f"{file}: lies beside the events' folders; move it to {folder}/{file.stem}/1.avsc" for file in loose]
    contracts: list[Contract] = []
    for file in files:
        try:
            contracts.append(read_contract(file))
        except PlanError as error:
            mistakes += error.mistakes
    if not files and not mistakes:
        mistakes.append(
            f"{folder}: holds no contract; write EVENT_NAME/1.avsc, or let `millrace schema infer` propose them"
        )
    mistakes += _collisions(folder, contracts)
    if mistakes:
        raise PlanError(mistakes)
    return tuple(sorted(contracts, key=lambda each: (each.folder, version_key(each.version))))


def read_contract(file: Path) -> Contract:
    """Read one file of a plan.

    Raises:
        PlanError: it has a mistake.
    """
    folder, version = file.parent.name, file.name.removesuffix(".avsc")
    if not FOLDER.fullmatch(folder):
        named = folder_of_event(folder)
        raise PlanError([f"{file.parent}: no name of an event's folder: a-z, 0-9 and single _; call it {named}"])
    if not VERSION.fullmatch(version):
        raise PlanError([f"{file}: no version; call it 1.avsc, or 1.2.avsc: one to three numbers"])
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise PlanError([f"{file}: more than {_MOST_BYTES:,} bytes; a contract is smaller"])
        text = file.read_text(encoding="utf-8")
        schema = json.loads(text)
    except json.JSONDecodeError as error:
        raise PlanError([f"{file}:{error.lineno}: not JSON: {error.msg}; correct it there"]) from error
    except RecursionError as error:
        raise PlanError([f"{file}: nested too deeply; a contract is flatter"]) from error
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError([f"{file}: cannot be read: {error}; it has to be a text file in UTF-8"]) from error
    try:
        read_schema(schema)
        fastavro.parse_schema(schema, _force=True)
    except SchemaError as error:
        raise PlanError([f"{file}:{_line_of(text, error.word)}: {error}"]) from error
    except (SchemaParseException, UnknownType, ValueError, KeyError, TypeError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        words = [*re.findall(r"[\w.]+", said), "type"]
        line = next(filter(None, (_found_at(text, word) for word in words)), 1)
        raise PlanError([f"{file}:{line}: not an Avro schema: {said}; see the Avro specification"]) from error
    kind = folder.removeprefix("_") if folder.startswith("_") else "track"
    event = schema.get("event", event_of_folder(folder) if kind == "track" else None)
    if kind == "track" and not (isinstance(event, str) and event):
        raise PlanError([f"{file}:{_line_of(text, 'event')}: `event` has to be a text: the exact name of the event"])
    if kind in PLANNED_TYPES and "event" in schema:
        said = f"`event` means nothing in {folder}, which is for every {kind}; remove it"
        raise PlanError([f"{file}:{_line_of(text, 'event')}: {said}"])
    return Contract(folder, version, kind, event, json.dumps(schema, sort_keys=True, ensure_ascii=False))


def _collisions(folder: Path, contracts: list[Contract]) -> Iterator[str]:
    """Say which files are for one event from different folders, or are one version, or disagree on their event."""
    folders: dict[Any, Contract] = {}
    events: dict[str, Contract] = {}
    versions: dict[Any, Contract] = {}
    for each in contracts:
        file = folder / each.folder / f"{each.version}.avsc"
        first = events.setdefault(each.folder, each)
        other = folders.setdefault((each.type, each.event), each)
        same = versions.setdefault((each.folder, version_key(each.version)), each)
        if first.event != each.event:
            yield (
                f"{file}: is for {each.event!r}, but {first.version}.avsc beside it for {first.event!r}; write the "
                "same `event` into both, or move it to a folder of its own"
            )
        elif other.folder != each.folder:
            yield (
                f"{file}: is for {each.title!r}, which has a folder already: {folder / other.folder}; keep one of the "
                'two, or write "event": "EXACT NAME" into the schemas of the other'
            )
        if same is not each:
            yield f"{file}: is the same version as {same.version}.avsc; keep one of the two"


def _line_of(text: str, word: str) -> int:
    return _found_at(text, word) or 1


def _found_at(text: str, word: str) -> int | None:
    """Return the first line, from 1, on which a word stands as a JSON text; None: on none."""
    at = text.find(json.dumps(word, ensure_ascii=False))
    return None if at < 0 else text.count("\n", 0, at) + 1

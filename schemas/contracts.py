"""Contracts: what a team's tracking plan says of its events, as settings that travel to every worker.

A contract is an Avro record schema for an event's `properties` (of identify and group: `traits`), in the plan's folder
as `<event_name>/<version>.avsc`. `config/plan.py` reads the folder, `transforms/validate.py` holds events to it.
"""

import dataclasses
import enum
import functools
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from millrace.schemas import avro
from millrace.schemas.avro_json import fast_decoder, read_schema
from millrace.schemas.violations import Checked, check

ADDED: tuple[pa.Field, ...] = tuple(avro.arrow_schema(avro.load("added/contracts")))

TRAITS = ("identify", "group")
"""The types of events whose contract is for `traits`."""

PLANNED_TYPES = ("identify", "group", "page", "screen")
"""Types other than track with a contract of their own, if the plan has one: in the folder `_identify` ..."""

VERSION_FIELD = "context.protocols.event_version"
"""Where an event names the version of its contract, as Segment's Protocols do; without it, it means the newest."""

FOLDER = re.compile(r"_(identify|group|page|screen)|[a-z0-9]+(_[a-z0-9]+)*")
VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,2}")


class Policy(enum.Enum):
    """What becomes of an event with a violation."""

    FLAG = "flag"  # archived as it came; the column `violations` says what is wrong
    STRIP = "strip"  # archived without the offending values, said in `violations`
    DEAD_LETTER = "dead_letter"
    OFF = "off"  # not held against any contract


@dataclasses.dataclass(frozen=True)
class Contract:
    """One version of what an event has to be."""

    folder: str
    version: str
    type: str
    event: str | None
    """Of a track event, its exact name."""
    schema: str
    """Avro, as JSON text."""

    @property
    def name(self) -> str:
        """As the column `contract` has it."""
        return f"{self.folder}/{self.version}"

    @property
    def title(self) -> str:
        """As a person says it, and millrace.yaml: the event's name, or `_identify` ..."""
        return self.event if self.event is not None else self.folder

    @property
    def column(self) -> str:
        """Which column it is for."""
        return "traits" if self.type in TRAITS else "properties"


@dataclasses.dataclass(frozen=True)
class SourcePolicy:
    """What one source has instead of the plan's own policies; None: the same."""

    policy: Policy | None = None
    unplanned: Policy | None = None
    events: tuple[tuple[str, Policy], ...] = ()


@dataclasses.dataclass(frozen=True)
class Contracts:
    """The plan, and what becomes of what violates it. Picklable and hashable: all of it travels inside the graph.

    Attributes:
        contracts: every version of every contract.
        policy: what becomes of events with a violation.
        unplanned: what becomes of track events without a contract; not STRIP, there is nothing to strip.
        events: another policy by title.
        sources: another policy by source; it goes before that of the event.
    """

    contracts: tuple[Contract, ...]
    policy: Policy = Policy.FLAG
    unplanned: Policy = Policy.FLAG
    events: tuple[tuple[str, Policy], ...] = ()
    sources: tuple[tuple[str, SourcePolicy], ...] = ()

    def policy_of(self, source_id: str, title: str) -> Policy:
        """Return what becomes of a planned event: the narrowest word counts, a source's before an event's."""
        source = dict(self.sources).get(source_id, SourcePolicy())
        return dict(source.events).get(title) or source.policy or dict(self.events).get(title) or self.policy

    def unplanned_of(self, source_id: str) -> Policy:
        """Return what becomes of a track event of a source that has no contract."""
        source = dict(self.sources).get(source_id, SourcePolicy())
        return source.unplanned or (Policy.OFF if source.policy is Policy.OFF else self.unplanned)


class Checker:
    """A contract, compiled: fast for what keeps it, exact for what does not."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.record = read_schema(json.loads(contract.schema))
        self._fast = fast_decoder(self.record)

    def suspects(self, texts: Sequence[bytes]) -> list[int]:
        """Return which of some JSON texts may violate the contract; all others keep it."""
        if self._fast is None:
            return list(range(len(texts)))
        decode = self._fast
        found = []
        for number, text in enumerate(texts):
            try:
                decode(text)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                found.append(number)
        return found

    def check(self, text: bytes, *, strip: bool = False) -> Checked:
        """Find what is wrong with a JSON text; nothing, where suspicion was wrong."""
        return check(text, self.record, self.contract.column, strip=strip)


class Versions(NamedTuple):
    """A contract's versions, compiled."""

    newest: Checker
    all: dict[tuple[int, ...], Checker]


@functools.lru_cache(maxsize=8)
def compiled(contracts: tuple[Contract, ...]) -> dict[tuple[str, str | None], Versions]:
    """Return a plan's contracts by (type, event), compiled once in a process."""
    by_subject: dict[tuple[str, str | None], list[Contract]] = {}
    for contract in contracts:
        by_subject.setdefault((contract.type, contract.event), []).append(contract)
    found = {}
    for subject, versions in by_subject.items():
        checkers = {version_key(each.version): Checker(each) for each in versions}
        found[subject] = Versions(checkers[max(checkers)], checkers)
    return found


def version_key(version: str) -> tuple[int, ...]:
    """Return what versions are compared by; 2, 2.0 and 2.0.0 are one.

    >>> version_key("1.10") > version_key("1.9.0")
    True
    """
    numbers = [int(each) for each in version.split(".")]
    while len(numbers) > 1 and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def event_of_folder(folder: str) -> str:
    """Return the event that a folder's name means, where its schemas do not name another.

    >>> event_of_folder("order_completed")
    'Order Completed'
    """
    return " ".join(word[0].upper() + word[1:] for word in folder.split("_"))


def folder_of_event(event: str) -> str:
    """Return the folder for an event: its letters and digits, in lower case; others are `_` between words.

    Where `event_of_folder` does not lead back, the schemas have to name the event: `"event": "order-completed"`.

    >>> folder_of_event("Order Completed")
    'order_completed'
    >>> folder_of_event("orderCompleted")
    'order_completed'
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", event)
    return re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_") or "event"


def violations_text(checked: Sequence[Any]) -> str:
    """Return violations as the column has them.

    >>> from millrace.schemas.violations import Kind, Violation
    >>> violations_text([Violation(Kind.MISSING_FIELD, "properties.total", "missing", "double")])
    '[{"kind":"missing_field","field":"properties.total","found":"missing","expected":"double","action":"kept"}]'
    """
    return msgspec.json.encode(checked).decode()

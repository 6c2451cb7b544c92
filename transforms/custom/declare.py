"""Declare: what users derive from or decorate with; `millrace.api` is its public name, docs/transforms.md describes it.

A transform's settings are the arguments of its function, or of its class's `__init__`, which keeps and checks them and
loads nothing: what is heavy is loaded in `open`, in the process that runs it.
"""

import abc
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import pyarrow as pa

from millrace.transforms.custom.event import Event

Adds = Sequence[pa.Field] | Mapping[str, pa.DataType]
"""The columns that a transform adds to the archive: fields, or types by name. All of them may be null."""

Returned = Event | Iterable[Event] | None
"""One event as it goes on, several in the place of one, or None: it is left out."""

ERRORS = pa.field("transform_errors", pa.string())
"""Which transforms failed on the event, as a JSON list of {"transform", "version", "error", "at"}."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Transform:
    """What all kinds share."""

    adds: ClassVar[Adds] = ()
    version: ClassVar[str] = ""
    """Of the transform, for messages; where it is blank, that of its package."""

    def open(self) -> None:
        """Load what is heavy; once in each process, before the first event. What it raises ends the start."""


class EventTransform(Transform, abc.ABC):
    """Sees one event at a time."""

    @abc.abstractmethod
    def each(self, event: Event) -> Returned:
        """Return the event, perhaps changed; several (`event.copy()`) in its place; or None to leave it out."""


class BatchTransform(Transform, abc.ABC):
    """Sees a batch of events as columns: some thousand rows for the price of one call."""

    @abc.abstractmethod
    def apply(self, batch: pa.RecordBatch) -> pa.RecordBatch | Mapping[str, Any]:
        """Return the batch with the columns added or changed, rows perhaps left out; or only those columns, by name.

        Each row has to become what it would become in any other batch: where batches begin and end means nothing.
        """


class UserTransform(Transform, abc.ABC):
    """Sees one user's events in their order, with a state of that user's own."""

    remembers_s: ClassVar[float]
    """How long a user is remembered after their last event; by event time."""
    state_version: ClassVar[int] = 1
    """Raise it when the state's form changes; `migrate` is then given what is there."""
    recalls: ClassVar[Sequence[str] | None] = None
    """The columns from which the state is rebuilt; None: all."""

    @abc.abstractmethod
    def each(self, event: Event, state: dict[Any, Any]) -> Returned:
        """Like EventTransform.each. What is changed in `state` is there again at this user's next event.

        It holds plain values: texts, numbers, bytes, times, lists and dicts of them; tuples come back as lists. It is
        empty for a user who is new or was forgotten. Where this raises, the state stays as it was before.
        """

    def migrate(self, state: dict[Any, Any], version: int) -> dict[Any, Any] | None:
        """Return a state of another version in this one's form; None: the user begins anew."""
        del state, version
        return None


class LookupTransform(Transform, abc.ABC):
    """Asks another service about a key, once for each distinct key that its cache does not hold."""

    key: ClassVar[str]
    """The column, or the path in one (`properties.account_id`), that is asked for; rows where it is null pass."""
    timeout_ms: ClassVar[int] = 1_000
    """Of one call."""
    budget_ms: ClassVar[int] = 5_000
    """Of all calls for one batch: what has no answer then goes without."""
    concurrency: ClassVar[int] = 32
    cache_size: ClassVar[int] = 100_000
    cache_ttl_s: ClassVar[float] = 600.0
    give_up_after: ClassVar[int] = 20
    """After so many failures in a row nothing is asked for `pause_s`, and events go without."""
    pause_s: ClassVar[float] = 30.0

    async def start(self) -> None:
        """Make clients that belong to the event loop; before the first call."""

    @abc.abstractmethod
    async def look_up(self, key: Any) -> Mapping[str, Any] | None:
        """Return the values of the added columns by name; those not named are null; None: nothing is known of it."""


KINDS: dict[str, type[Transform]] = {
    "event": EventTransform,
    "batch": BatchTransform,
    "user": UserTransform,
    "lookup": LookupTransform,
}


@dataclasses.dataclass(frozen=True)
class Declared:
    """What a decorator notes on a function."""

    base: type[Transform]
    members: Mapping[str, Any]


_NOTE = "__millrace__"


def on_event(*, adds: Adds = (), version: str = "") -> Callable[[_Function], _Function]:
    """Make a transform of a function of an event, and of settings as keyword arguments. See EventTransform."""
    return _noting(Declared(EventTransform, {"adds": adds, "version": version}))


def on_batch(*, adds: Adds = (), version: str = "") -> Callable[[_Function], _Function]:
    """Make a transform of a function of a batch, and of settings as keyword arguments. See BatchTransform."""
    return _noting(Declared(BatchTransform, {"adds": adds, "version": version}))


def on_lookup(*, key: str, adds: Adds, version: str = "", **limits: float) -> Callable[[_Function], _Function]:
    """Make a transform of an async function of a key, and of settings as keyword arguments. See LookupTransform."""
    return _noting(Declared(LookupTransform, {"key": key, "adds": adds, "version": version, **limits}))


def _noting(declared: Declared) -> Callable[[_Function], _Function]:
    def note(function: _Function) -> _Function:
        setattr(function, _NOTE, declared)
        return function

    return note


def kind_of(target: Any) -> str | None:
    """Return which kind of transform a class or a decorated function is; None: it is none."""
    declared = getattr(target, _NOTE, None)
    base = declared.base if isinstance(declared, Declared) else target
    if inspect.isclass(base):
        for name, kind in KINDS.items():
            if issubclass(base, kind):
                return name
    return None


def make(target: Any, settings: Mapping[str, Any]) -> Any:
    """Return a transform with its settings; whatever the user's `__init__` raises comes through."""
    declared = getattr(target, _NOTE, None)
    if not isinstance(declared, Declared):
        return target(**settings)
    method = {EventTransform: "each", BatchTransform: "apply", LookupTransform: "look_up"}[declared.base]
    call = staticmethod(functools.partial(target, **settings))
    return type(target.__name__, (declared.base,), {**declared.members, method: call})()


def members_of(target: Any) -> Any:
    """Return what has the attributes (`adds`, `version` ...) of a class or a decorated function."""
    declared = getattr(target, _NOTE, None)
    if not isinstance(declared, Declared):
        return target
    return type(target.__name__, (declared.base,), {**declared.members, "__module__": target.__module__})


def fields_of(adds: Adds) -> tuple[pa.Field, ...]:
    """Return the added columns as fields that may be null.

    Raises:
        TypeError: they are not fields, nor types by name.
    """
    pairs = adds.items() if isinstance(adds, Mapping) else [(getattr(each, "name", None), each) for each in adds]
    fields = []
    for name, each in pairs:
        of = each.type if isinstance(each, pa.Field) else each
        if not isinstance(name, str) or not isinstance(of, pa.DataType):
            raise TypeError(f"{each!r} in adds is no column: write pa.field(NAME, TYPE), or {{NAME: TYPE}}")
        fields.append(pa.field(name, of))
    return tuple(fields)

"""The section `transforms:` of `millrace.yaml`: users' own transforms, in the order in which events meet them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import yaml

from millrace.config.arguments import read_arguments
from millrace.config.columns import known_columns
from millrace.config.expressions import Expression, ExpressionError, Value, compile_expression, compile_value
from millrace.config.yaml_page import Page, shown
from millrace.schemas.event import ARCHIVE
from millrace.transforms.custom.declare import ERRORS, KINDS, UserTransform, fields_of, kind_of, make, members_of
from millrace.transforms.custom.find import NotFoundError, find
from millrace.transforms.custom.lookup import Limits
from millrace.transforms.custom.step import CustomStep, limits_of, version_of

_ENTRY = ("use", "name", "with", "when", "on_error", "error_text")
_OF_LOOKUPS = tuple(Limits._fields)
_MOST = {
    "timeout_ms": 600_000,
    "budget_ms": 600_000,
    "concurrency": 10_000,
    "cache_size": 100_000_000,
    "cache_ttl_s": 31_536_000,
    "give_up_after": 1_000_000,
    "pause_s": 86_400,
}
_WHOLE = {"concurrency", "cache_size", "give_up_after"}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_STORABLE = (
    "take string, bool_, int8 to int64, float32, float64, decimal128, binary, date32 or timestamp('us', tz='UTC'), or "
    "JSON text"
)
_COLUMN = re.compile(r"[a-z_][a-z0-9_]{0,62}")


def read_transforms(page: Page, node: yaml.Node) -> tuple[CustomStep, ...]:
    """Read the section; imports the users' modules, and makes each transform once to see that it takes its settings."""
    steps: list[CustomStep] = []
    for item in page.items(node, "transforms"):
        step = _step(page, item, steps)
        if step is not None:
            steps.append(step)
    for at, step in enumerate(steps):
        step.later = tuple(each.name for each in steps[at:])
        step.flags = step.passes and not any(each.passes for each in steps[:at])
    return tuple(steps)


def name_of(use: str) -> str:
    """Return the name of an entry that gives itself none.

    >>> name_of("shop.transforms:CartAbandonment")
    'cart_abandonment'
    """
    name = use.rpartition(":")[2].rpartition(".")[2]
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower()


def _step(page: Page, node: yaml.Node, before: Sequence[CustomStep]) -> CustomStep | None:
    of = page.members(node, "transforms", (*_ENTRY, *_OF_LOOKUPS))
    use = page.text(of.get("use"), "transforms: use")
    if use is None:
        if isinstance(node, yaml.MappingNode) and "use" not in of:
            page.wrong(node, "transforms: use is missing; write module:Name of your transform")
        return None
    try:
        target = find(use)
    except NotFoundError as error:
        page.wrong(of["use"], f"transforms: use: {error}")
        return None
    kind = kind_of(target)
    if kind is None:
        page.wrong(
            of["use"],
            f"transforms: use: {use} is no transform; decorate the function with on_event, on_batch or on_lookup, or "
            f"derive the class from {', '.join(each.__name__ for each in KINDS.values())} (millrace.api)",
        )
        return None
    name = page.text(of.get("name"), "transforms: name") or name_of(use)
    if not _NAME.fullmatch(name):
        page.wrong(of.get("name", node), f"transforms: {name!r} is no name; take a-z, 0-9 and _, and a letter first")
    if name in {step.name for step in before}:
        page.wrong(of.get("name", node), f"transforms: {name} is there already; give this one a `name` of its own")
    members = members_of(target)
    own = _own(page, of["use"], name, members, before)
    schema = pa.schema([*known_columns(), *(field for step in before for field in (*step.own, ERRORS))][::-1])
    settings = _settings(page, of.get("with"), node, name, target)
    policy = page.choice(of.get("on_error"), f"{name}: on_error", ("dead_letter", "pass"))
    for each in _OF_LOOKUPS:
        if each in of and kind != "lookup":
            page.wrong(
                of[each], f"{name}: {each} is for lookups only, and this is a transform of kind {kind}; remove it"
            )
    return CustomStep(
        name=name,
        use=use,
        kind=kind,
        own=own,
        shared=tuple(field.name for field in own for step in before if field in step.own),
        version=version_of(target, members.version),
        settings=settings,
        when=_when(page, of.get("when"), name, schema),
        passes=(policy or ("pass" if kind == "lookup" else "dead_letter")) == "pass",
        with_text=page.choice(of.get("error_text"), f"{name}: error_text", ("true", "false")) == "true",
        remembers_s=_remembers_s(page, of["use"], name, members) if kind == "user" else 0.0,
        recalls=_recalls(page, of["use"], name, members, schema) if kind == "user" else (),
        key=_key(page, of["use"], name, members, schema) if kind == "lookup" else None,
        limits=limits_of(members, _limits(page, of, name)) if kind == "lookup" else None,
    )


def _own(page: Page, node: yaml.Node, name: str, members: Any, before: Sequence[CustomStep]) -> tuple[pa.Field, ...]:
    try:
        fields = fields_of(members.adds)
    except TypeError as error:
        page.wrong(node, f"{name}: {error}")
        return ()
    known = set(known_columns().names)
    for field in fields:
        theirs = next((step for step in before if field.name in {each.name for each in step.own}), None)
        if field.name in known or field.name == ERRORS.name:
            page.wrong(node, f"{name}: adds {field.name}, which is a column of Millrace's; take another name")
        elif theirs is not None and theirs.use != page.text(node, "transforms: use"):
            page.wrong(node, f"{name}: adds {field.name}, which {theirs.name} adds already; take another name")
        elif not _COLUMN.fullmatch(field.name) or field.name.startswith("context_"):
            page.wrong(
                node, f"{name}: adds {field.name!r}; take a-z, 0-9 and _ for a column's name, and not context_ in front"
            )
        elif not _is_storable(field.type):
            page.wrong(node, f"{name}: adds {field.name} as {field.type}; {_STORABLE}")
    return fields


def _is_storable(of: pa.DataType) -> bool:
    """Whether a Delta table gives the type back as it is. Of nested ones it renames the parts."""
    plain = {pa.string(), pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64()}
    return of in plain | {pa.binary(), pa.date32(), pa.timestamp("us", tz="UTC")} or pa.types.is_decimal128(of)


def _settings(page: Page, node: yaml.Node | None, entry: yaml.Node, name: str, target: Any) -> Mapping[str, Any]:
    """Read `with`, and make the transform once to see that it takes it."""
    settings, fits = read_arguments(page, node, entry, name, target)
    if fits:
        try:
            make(target, settings)
        except Exception as error:  # noqa: BLE001  it is the user's __init__
            page.wrong(
                node or entry, f"{name}: {target.__name__} refuses its settings: {type(error).__name__}: {error}"
            )
    return settings


def _when(page: Page, node: yaml.Node | None, name: str, schema: pa.Schema) -> Expression | None:
    text = page.text(node, f"{name}: when")
    if node is None or text is None:
        return None
    try:
        return compile_expression(text, schema)
    except ExpressionError as error:
        page.wrong(node, f"{name}: when: {shown(node)}, {error}")
        return None


def _remembers_s(page: Page, node: yaml.Node, name: str, members: type[UserTransform]) -> float:
    keep = getattr(members, "remembers_s", None)
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep <= 3_650 * 86_400:
        page.wrong(
            node, f"{name}: {members.__name__} has no remembers_s; say for how many seconds a user is remembered"
        )
        return 0.0
    version = members.state_version
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        page.wrong(node, f"{name}: {members.__name__}.state_version has to be a whole number from 1")
    return float(keep)


def _recalls(
    page: Page, node: yaml.Node, name: str, members: type[UserTransform], schema: pa.Schema
) -> tuple[str, ...]:
    given = ARCHIVE.names if members.recalls is None else list(members.recalls)
    for column in given:
        if column not in schema.names:
            page.wrong(node, f"{name}: {members.__name__}.recalls: {column} is not a column")
    return tuple(dict.fromkeys([*given, "message_id"]))


def _key(page: Page, node: yaml.Node, name: str, members: Any, schema: pa.Schema) -> Value | None:
    try:
        return compile_value(str(getattr(members, "key", "")), schema)
    except ExpressionError as error:
        page.wrong(node, f"{name}: {members.__name__}.key: {error}")
        return None


def _limits(page: Page, of: Mapping[str, yaml.Node], name: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for each, most in _MOST.items():
        value = (page.whole if each in _WHOLE else page.number)(of.get(each), f"{name}: {each}", most)
        if value is not None:
            found[each] = value
    return found

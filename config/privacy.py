"""The section `privacy:`: what may be kept of which field, whose events are left out, and by which consent.

Settings only: they travel with the graph, and name secrets by reference. docs/privacy.md describes them for people.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
import yaml

from millrace.config.secrets import SecretReference, read_reference
from millrace.config.yaml_page import Page, line_of, shown
from millrace.schemas import avro
from millrace.schemas.event import BATCH, TYPES

JSON_COLUMNS = ("properties", "traits", "context_rest", "rest")
"""Columns that hold JSON text: a field of theirs is a path."""
USER_COLUMNS = ("user_id", "anonymous_id")
CONSENT_DENIED: pa.Field = avro.arrow_schema(avro.load("added/privacy")).field("consent_denied")

POLICIES = ("drop", "truncate", "hash", "encrypt", "keep")
KEYED = ("hash", "encrypt")
STRATEGIES = ("and", "or")

_FIXED = {
    "user_key": "it follows user_id and anonymous_id; write rules for these",
    "event": "contracts and rules hang on it; send what is private as a property",
    "clock_flag": "it is computed; remove this",
}
_COLUMNS = tuple(
    field.name for field in BATCH if field.nullable and field.type == pa.string() and field.name not in _FIXED
)
_STEP = re.compile(r'"((?:[^"\\]|\\.)+)"|([^."\[\]\s]+)')
_VERSION = re.compile(r"[a-z][a-z0-9]{0,7}")
_MOST_CHARACTERS = 100_000
_PATHS = (
    "a column such as context_ip, or a path such as properties.email, traits.address.street, properties.items[].sku"
)


class Path(NamedTuple):
    """Which value: a column, or what is at some place in a column's JSON text."""

    column: str
    keys: tuple[str, ...] = ()
    each: bool = False
    """Of the array at its end, each element instead of the whole."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """What may be kept of a field."""

    path: Path
    policy: str
    """One of POLICIES."""
    characters: int | None = None
    """truncate: how many are left of a text; None: it is an IP address."""
    sources: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()
    events: frozenset[str] = frozenset()
    """Empty: of every source, type, event."""


@dataclasses.dataclass(frozen=True)
class Key:
    """A version of the key that hashes and encrypts."""

    version: str
    secret: SecretReference


@dataclasses.dataclass(frozen=True)
class Consent:
    """Which categories the archive needs."""

    required: tuple[str, ...] = ()
    strategy: str = "and"
    silent: str = "pass"


@dataclasses.dataclass(frozen=True)
class Privacy:
    """What the section says."""

    rules: tuple[Rule, ...] = ()
    keys: tuple[Key, ...] = ()
    """The newest first: it protects; the others are still read."""
    consent: Consent | None = None
    suppression: str | None = None
    """The file of users whose events are left out: a path, or gs://."""
    unreadable: str = "drop"
    """What becomes of payloads of dead letters in which no field can be found: drop or keep."""

    @property
    def adds(self) -> tuple[pa.Field, ...]:
        """The columns that it adds to the archive."""
        return (CONSENT_DENIED,) if self.consent else ()


def read_privacy(page: Page, node: yaml.Node) -> Privacy:
    """Read the section; what is wrong is noted, and left out."""
    of = page.members(node, "privacy", ("keys", "fields", "consent", "suppression", "unreadable"))
    keys = _keys(page, of.get("keys"))
    items = page.items(of.get("fields"), "privacy: fields")
    rules = [_rule(page, each) for each in items]
    found = [rule for rule in rules if rule is not None]
    if "keys" not in of:
        for item, rule in zip(items, rules, strict=True):
            if rule is not None and rule.policy in KEYED:
                page.wrong(item, f"privacy: fields: {rule.policy} needs a key; add keys: [{{version, secret}}]")
    _unreachable(page, items, rules)
    return Privacy(
        rules=tuple(found),
        keys=keys,
        consent=_consent(page, of["consent"]) if "consent" in of else None,
        suppression=_suppression(page, of.get("suppression")),
        unreadable=page.choice(of.get("unreadable"), "privacy: unreadable", ("drop", "keep")) or "drop",
    )


def _keys(page: Page, node: yaml.Node | None) -> tuple[Key, ...]:
    keys: dict[str, Key] = {}
    if node is not None and not isinstance(node, yaml.SequenceNode):  # not repeated: it could be a key
        page.wrong(node, "privacy: keys: has to be a list: [{version: v1, secret: env:NAME}], never the key itself")
        return ()
    for item in page.items(node, "privacy: keys"):
        if not isinstance(item, yaml.MappingNode):
            page.wrong(item, "privacy: keys: has to be {version: v1, secret: env:NAME}, never the key itself")
            continue
        of = page.members(item, "privacy: keys", ("version", "secret"))
        for missing in {"version", "secret"} - set(of):
            page.wrong(item, f"privacy: keys: {missing} is missing; write {{version: v1, secret: env:NAME}}")
        version = page.text(of.get("version"), "privacy: keys: version")
        secret = read_reference(page, of.get("secret"), "privacy: keys: secret")
        if version is not None and not _VERSION.fullmatch(version):
            page.wrong(of["version"], "privacy: keys: version has to be 1 to 8 characters a-z 0-9, such as v1")
        elif version in keys:
            page.wrong(of["version"], f"privacy: keys: version {version} is there already; give this key another")
        elif secret is not None and secret.kind == "gcp-sm" and secret.place.endswith("/latest"):
            page.wrong(
                of["secret"],
                "privacy: keys: secret: `latest` would become another key under the same version; name the version",
            )
        elif version is not None and secret is not None:
            keys[version] = Key(version, secret)
    if isinstance(node, yaml.SequenceNode) and not node.value:
        page.wrong(node, "privacy: keys is empty; add {version: v1, secret: env:NAME}, or remove it")
    return tuple(keys.values())


def _rule(page: Page, item: yaml.Node) -> Rule | None:
    of = page.members(item, "privacy: fields", ("field", "policy", "characters", "sources", "types", "events"))
    if not isinstance(item, yaml.MappingNode):
        return None
    for missing in ("field", "policy"):
        if missing not in of:
            page.wrong(item, f"privacy: fields: {missing} is missing; write {{field: context_ip, policy: truncate}}")
    name = page.text(of.get("field"), "privacy: fields: field")
    path = None if name is None else _path(page, of["field"], name)
    policy = page.choice(of.get("policy"), f"privacy: fields: {name}: policy", POLICIES)
    characters = page.whole(of.get("characters"), f"privacy: fields: {name}: characters", _MOST_CHARACTERS)
    if path is None or policy is None:
        return None
    rule = Rule(
        path,
        policy,
        characters,
        *(_words(page, of.get(limit), f"privacy: fields: {name}: {limit}") for limit in ("sources", "types", "events")),
    )
    for problem_at, problem in _problems(rule, of):
        page.wrong(problem_at, f"privacy: fields: {name}: {problem}")
    for kind in sorted(rule.types - set(TYPES)):
        page.wrong(of["types"], f"privacy: fields: {name}: types: {kind!r} is none; there are: {', '.join(TYPES)}")
    return rule


def _problems(rule: Rule, of: Mapping[str, yaml.Node]) -> Sequence[tuple[yaml.Node, str]]:
    column, policy = rule.path.column, rule.policy
    found = []
    if "characters" in of and policy != "truncate":
        found.append((of["characters"], f"only truncate has characters; remove this from {policy}"))
    if column in USER_COLUMNS and policy in ("drop", "truncate"):
        found.append((of["policy"], f"{policy} would leave events without their user; hash or encrypt it"))
    if column in ("context_rest", "rest") and not rule.path.keys:
        found.append((of["field"], "it holds whatever has no column; name a path in it"))
    elif column in JSON_COLUMNS and not rule.path.keys and policy not in ("drop", "keep"):
        found.append((of["policy"], f"a whole column of JSON is dropped or kept; for {policy} name a path in it"))
    if column == "context_ip" and policy == "truncate" and "characters" in of:
        found.append((of["characters"], "an address is truncated to its network; remove this"))
    if column == "context_ip" and (rule.types or rule.events):
        limit = of["types" if rule.types else "events"]
        found.append((limit, "an address is protected before its event can be read; only sources can be named here"))
    if column != "context_ip" and not rule.path.keys and policy == "truncate" and rule.characters is None:
        found.append((of["policy"], "truncate without characters is for addresses; write how many characters are left"))
    return found


def _path(page: Page, node: yaml.Node, name: str) -> Path | None:
    column, _, rest = name.partition(".")
    if name in _COLUMNS:
        return Path(name)
    if column in JSON_COLUMNS:
        each = rest.endswith("[]")
        keys, at = [], 0
        plain = rest.removesuffix("[]")
        while step := _STEP.match(plain, at):
            keys.append(re.sub(r"\\(.)", r"\1", step[1]) if step[1] else step[2])
            at = step.end()
            at += 2 if plain.startswith("[].", at) else 0
            if at == len(plain):
                return Path(column, tuple(keys), each)
            if not plain.startswith(".", at):
                break
            at += 1
        page.wrong(node, f"privacy: fields: {shown(node)} is no path; write {_PATHS}; put odd keys in quotes")
        return None
    if name in _FIXED:
        page.wrong(node, f"privacy: fields: {name} cannot be changed: {_FIXED[name]}")
    elif name in BATCH.names:
        page.wrong(node, f"privacy: fields: {name} cannot be changed: order, copies and accounts hang on it")
    elif column == "context" and rest:
        meant = "context_" + re.sub(r"(?<=[a-z])([A-Z])", r"_\1", rest).lower().replace(".", "_")
        write = meant if meant in _COLUMNS else f"context_rest.{rest}"
        page.wrong(node, f"privacy: fields: {shown(node)} is in a column; write {write}")
    else:
        page.wrong(node, f"privacy: fields: {shown(node)} is no field; write {_PATHS}")
    return None


def _words(page: Page, node: yaml.Node | None, where: str) -> frozenset[str]:
    words = [page.text(item, where) for item in page.items(node, where)]
    if isinstance(node, yaml.SequenceNode) and not node.value:
        page.wrong(node, f"{where} is empty; write those that the rule is for, or remove it for all")
    return frozenset(word for word in words if word is not None)


def _unreachable(page: Page, items: Sequence[yaml.Node], rules: Sequence[Rule | None]) -> None:
    """Note rules for a field that an earlier one takes everywhere."""
    taken: dict[Path, int] = {}
    for item, rule in zip(items, rules, strict=True):
        if rule is None:
            continue
        if rule.path in taken:
            page.wrong(item, f"privacy: fields: line {taken[rule.path]} has this field already; remove one of the two")
        elif not (rule.sources or rule.types or rule.events):
            taken[rule.path] = line_of(item)


def _consent(page: Page, node: yaml.Node) -> Consent:
    of = page.members(node, "privacy: consent", ("required_for_archive", "strategy", "silent"))
    required = page.items(of.get("required_for_archive"), "privacy: consent: required_for_archive")
    words = [page.text(item, "privacy: consent: required_for_archive") for item in required]
    for name in ("strategy", "silent"):
        if name in of and not required:
            page.wrong(of[name], f"privacy: consent: {name} means nothing without required_for_archive; add it")
    return Consent(
        tuple(dict.fromkeys(word for word in words if word is not None)),
        page.choice(of.get("strategy"), "privacy: consent: strategy", STRATEGIES) or "and",
        page.choice(of.get("silent"), "privacy: consent: silent", ("pass", "drop")) or "pass",
    )


def _suppression(page: Page, node: yaml.Node | None) -> str | None:
    if node is None:
        return None
    of = page.members(node, "privacy: suppression", ("file",))
    if "file" not in of and isinstance(node, yaml.MappingNode):
        page.wrong(node, "privacy: suppression: file is missing; write file: /path or file: gs://BUCKET/NAME")
    file = page.text(of.get("file"), "privacy: suppression: file")
    if file is not None and not file.startswith(("/", "gs://")):
        page.wrong(of["file"], f"privacy: suppression: file: {shown(of['file'])} has to be /path or gs://BUCKET/NAME")
    return file

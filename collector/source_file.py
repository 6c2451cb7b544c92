"""`millrace.yaml` as text, and the sources that it means; docs/sources.md describes it for people."""

import ipaddress
import re
from collections.abc import Sequence
from typing import NamedTuple

import yaml

from millrace.collector.client_ip import IpPolicy, Network
from millrace.collector.keys import BEGINS_CHARACTERS, PLAIN_KEY, Kind, StoredKey
from millrace.collector.origins import Origins
from millrace.collector.source import EVERY_TYPE, Source, SourceLimits
from millrace.config.sections import DELIVERY, SECTIONS
from millrace.config.yaml_page import Mistake, MistakesError, Page, line_of, shown
from millrace.schemas.event import TYPES

SOURCE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
KEYS_AT_ONCE = 2
BURST_S = 10
"""Without burst_events, what this many seconds bring may come at once."""

_MOST_EVENTS_PER_S = 1_000_000
_MOST_EVENT_BYTES = 1 << 20  # decode takes no larger event
_MOST_REQUEST_BYTES = 8 << 20  # a Pub/Sub message has at most 10,000,000 bytes
_MOST_REQUEST_EVENTS = 50_000  # decode takes no more in a message

_FILE = ("sources", "trusted_proxies", *SECTIONS, *DELIVERY)
SOURCE_MEMBERS = (
    "name",
    "kind",
    "keys",
    "origins",
    "events_per_s",
    "burst_events",
    "event_bytes",
    "request_bytes",
    "request_events",
    "ip",
    "types",
)
_KEY = ("begins", "sha256", "until")
_LEAKED = (
    "a write key in plain text: only its hash belongs here, as `begins` and `sha256`; remove it. A server's key has to "
    "be taken out of use, since it was written down: `millrace source rotate NAME` makes a new one"
)


class SourcesError(MistakesError):
    """A file of sources has mistakes."""


class Contents(NamedTuple):
    """What a file says."""

    sources: tuple[Source, ...]
    trusted_proxies: tuple[Network, ...]


def read(text: str, path: str) -> Contents:
    """Read the text of a file; one without a source is no mistake here, since the first has to be added to something.

    Raises:
        SourcesError: it has mistakes: all of them at once.
    """
    page = Page(text)
    sources: Sequence[Source] = ()
    proxies: Sequence[Network] = ()
    if page.root is not None:
        file = page.members(page.root, "the file", _FILE)
        sources = _sources(page, file.get("sources"))
        proxies = _networks(page, file.get("trusted_proxies"))
    leaked = [number for number, line in enumerate(text.splitlines(), 1) if PLAIN_KEY.search(line)]
    mistakes = [mistake for mistake in page.mistakes if mistake.line not in leaked]  # those could repeat the key
    mistakes += [Mistake(line, _LEAKED) for line in leaked]
    if mistakes:
        raise SourcesError(path, mistakes)
    return Contents(tuple(sources), tuple(proxies))


def _sources(page: Page, node: yaml.Node | None) -> Sequence[Source]:
    if node is None or (isinstance(node, yaml.ScalarNode) and not node.value):
        return ()
    sources = []
    holders: dict[bytes, str] = {}
    for name, value in page.pairs(node, "sources"):
        if not SOURCE_ID.fullmatch(name.value):
            page.wrong(name, f"sources: {shown(name)} is no name; take 1 to 64 letters, digits or . _ -")
        source = _source(page, name, value)
        for key in source.keys:
            if key.sha256 in holders:
                page.wrong(
                    name, f"{name.value}: keys: one is a key of {holders[key.sha256]} already; remove one of the two"
                )
            holders[key.sha256] = f"{name.value}, line {line_of(name)},"
        sources.append(source)
    return sources


def _source(page: Page, name_node: yaml.ScalarNode, node: yaml.Node) -> Source:
    """Read one source; where something is wrong the page knows, and the default stands in for it."""
    name = name_node.value
    of = page.members(node, name, SOURCE_MEMBERS)
    word = page.choice(of.get("kind"), f"{name}: kind", [kind.value for kind in Kind])
    if "kind" not in of and isinstance(node, yaml.MappingNode):
        page.wrong(name_node, f"{name}: kind is missing; write one of {', '.join(kind.value for kind in Kind)}")
    origins = _origins(page, name, of.get("origins"))
    if word == Kind.BROWSER.value and "origins" not in of:
        page.wrong(
            name_node, f'{name}: origins is missing; write those of your pages, or ["*"] for any page of any site'
        )
    if word in (Kind.MOBILE.value, Kind.SERVER.value) and "origins" in of:
        page.wrong(of["origins"], f"{name}: only browsers have origins; remove this, or write kind: browser")
    rate = page.number(of.get("events_per_s"), f"{name}: events_per_s", _MOST_EVENTS_PER_S)
    burst = page.number(of.get("burst_events"), f"{name}: burst_events", _MOST_EVENTS_PER_S * BURST_S)
    if "burst_events" in of and "events_per_s" not in of:
        page.wrong(
            of["burst_events"], f"{name}: burst_events means nothing without events_per_s; add it, or remove this"
        )
    return Source(
        id=name,
        name=page.text(of.get("name"), f"{name}: name") or name,
        kind=Kind(word or Kind.SERVER.value),
        keys=_keys(page, name, of.get("keys")),
        origins=origins,
        rate=rate,
        burst=burst if burst is not None else max(1.0, rate * BURST_S) if rate else 0.0,
        limits=SourceLimits(
            event_bytes=page.whole(of.get("event_bytes"), f"{name}: event_bytes", _MOST_EVENT_BYTES),
            request_bytes=page.whole(of.get("request_bytes"), f"{name}: request_bytes", _MOST_REQUEST_BYTES),
            request_events=page.whole(of.get("request_events"), f"{name}: request_events", _MOST_REQUEST_EVENTS),
        ),
        ip_policy=IpPolicy(
            page.choice(of.get("ip"), f"{name}: ip", [policy.value for policy in IpPolicy]) or IpPolicy.TRUNCATE.value
        ),
        allowed_types=_types(page, name, of.get("types")),
    )


def _keys(page: Page, name: str, node: yaml.Node | None) -> tuple[StoredKey, ...]:
    """Read the stored keys. No message repeats what stands in the place of a beginning or a hash: it could be a key."""
    items = page.items(node, f"{name}: keys") if node is None or isinstance(node, yaml.SequenceNode) else [node]
    keys = []
    for item in items:
        if not isinstance(item, yaml.MappingNode):
            page.wrong(item, f"{name}: keys: {_LEAKED}")
            continue
        of = page.members(item, f"{name}: keys", _KEY)
        begins = of.get("begins")
        sha256 = of.get("sha256")
        if not (isinstance(begins, yaml.ScalarNode) and len(begins.value) == BEGINS_CHARACTERS):
            page.wrong(begins or item, f"{name}: keys: begins has to be the key's first {BEGINS_CHARACTERS} characters")
        elif not (isinstance(sha256, yaml.ScalarNode) and re.fullmatch(r"[0-9a-f]{64}", sha256.value)):
            page.wrong(
                sha256 or item,
                f"{name}: keys: sha256 has to be the key's hash, 64 characters 0-9 and a-f; never the key itself",
            )
        else:
            until = page.moment(of.get("until"), f"{name}: keys: until")
            keys.append(StoredKey(begins.value, bytes.fromhex(sha256.value), until))
    if len(items) > KEYS_AT_ONCE:
        page.wrong(
            items[KEYS_AT_ONCE], f"{name}: keys: two at once, to change from one to the other, are the most; remove one"
        )
    return tuple(keys)


def _origins(page: Page, name: str, node: yaml.Node | None) -> Origins:
    patterns = []
    for item in page.items(node, f"{name}: origins"):
        pattern = page.text(item, f"{name}: origins")
        if pattern is not None:
            try:
                Origins([pattern])
            except ValueError as error:
                page.wrong(item, f"{name}: origins: {error}")
            else:
                patterns.append(pattern)
    if isinstance(node, yaml.SequenceNode) and not node.value:
        page.wrong(node, f'{name}: origins is empty; write those of your pages, or ["*"] for any page of any site')
    return Origins(patterns)


def _types(page: Page, name: str, node: yaml.Node | None) -> frozenset[str]:
    found = [page.choice(item, f"{name}: types", TYPES) for item in page.items(node, f"{name}: types")]
    if isinstance(node, yaml.SequenceNode) and not node.value:
        page.wrong(node, f"{name}: types is empty; write those that are allowed, or remove it to allow all")
    return frozenset(word for word in found if word) if node is not None else EVERY_TYPE


def _networks(page: Page, node: yaml.Node | None) -> Sequence[Network]:
    found: list[Network] = []
    for item in page.items(node, "trusted_proxies"):
        text = page.text(item, "trusted_proxies")
        if text is None:
            continue
        try:
            found.append(ipaddress.ip_network(text))
        except ValueError as error:
            page.wrong(item, f"trusted_proxies: {error}; write an address or a network such as 10.0.0.0/8")
    return found

"""Protect letters: the bytes and the attributes in decode's dead letters are protected as the events are.

A payload that is JSON is treated by the paths, wherever events are in it (one, an array, a batch, lines). In a text
that is none, broken or hostile as it is, the value behind each such key is replaced, whatever its path; so is every
`"ip"` in any text. A body in gzip is unpacked, protected and packed again. In any other bytes nothing can be found:
these are removed, unless `unreadable: keep`.
"""

import gzip
import logging
from collections.abc import Mapping, Sequence

import msgspec
import pyarrow as pa

from millrace.config.privacy import JSON_COLUMNS, Path, Privacy, Rule
from millrace.schemas import wire
from millrace.schemas.dead_letter import MESSAGE_CHARACTERS, Rejected
from millrace.schemas.envelope import CONTENT_ENCODING, IP, USER_AGENT
from millrace.transforms.counts import count
from millrace.transforms.fields import STAGE, spread
from millrace.transforms.json_paths import Tree, rewrite
from millrace.transforms.pending import MAX_BODY_BYTES
from millrace.transforms.policies import Keys, Protect, ProtectJson, encode, on_json, on_text
from millrace.transforms.scan import Scanner
from millrace.transforms.suppression import Suppression
from millrace.transforms.unpack import unpack_body

_LOG = logging.getLogger(__name__)

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_ATTRIBUTES = {"context_ip": IP, "context_user_agent": USER_AGENT}
_USER_KEYS = ("userId", "anonymousId")
_REMOVED = " (the payload was removed: privacy)"
_CONTROL = bytes(set(range(32)) - set(b"\x00\t\n\v\f\r"))

_PLAIN = ("identity", "gzip", "x-gzip")  # what came in gzip and is in several letters is unpacked by now

_attributes = msgspec.json.Decoder(dict[str, str]).decode
_json = msgspec.json.Decoder(msgspec.Raw).decode


_PREFIXES: dict[str, tuple[str, ...]] = {
    "properties": ("properties",),
    "traits": ("traits",),
    "context_rest": ("context",),
    "rest": (),
}


def wire_path(path: Path) -> Path:
    """Return where a column, or a value in one, is in an event as it came; the column of the result is empty."""
    if path.column in JSON_COLUMNS:
        return Path("", (*_PREFIXES[path.column], *path.keys), path.each)
    return Path("", _WIRE[path.column])


def _wire_columns() -> dict[str, tuple[str, ...]]:
    columns: dict[str, tuple[str, ...]] = {"user_id": ("userId",), "anonymous_id": ("anonymousId",)}
    for name, key in wire.keys(wire.Context, columns=True).items():
        kind = wire.CONTEXT_OBJECTS.get(name)
        if kind is None:
            columns[f"context_{name}"] = ("context", key)
        else:
            inner = wire.keys(kind, columns=True).items()
            columns |= {f"context_{name}_{attribute}": ("context", key, inner_key) for attribute, inner_key in inner}
    return columns


_WIRE = _wire_columns()


class _Of:
    """What is done to the letters of one source."""

    def __init__(self, rules: Sequence[Rule], keys: Keys) -> None:
        self.tree = Tree()
        self.attributes: dict[str, Protect] = {}
        self.ip: Scanner | None = None
        acts: dict[str, ProtectJson] = {}
        places: list[tuple[Path, ProtectJson, bool]] = []
        taken: set[Path] = set()
        for rule in rules:
            if rule.path in taken:
                continue
            taken.add(rule.path)
            act, is_kept = on_json(rule, keys), rule.policy == "keep"
            path = wire_path(rule.path)
            places.append((path, act, not is_kept))
            if not is_kept:
                acts.setdefault(path.keys[-1], act)
            if rule.path.column in _ATTRIBUTES:
                self.attributes[_ATTRIBUTES[rule.path.column]] = on_text(rule, keys)
            if rule.path.column == "context_ip" and not is_kept:
                self.ip = Scanner({IP: act})
        for before in ((), ("batch",)):
            for path, act, whole in places:
                self.tree.add((*before, *path.keys), act, each=path.each, whole=whole)
        self.keys = Scanner(acts)

    def text(self, text: bytes) -> bytes:
        if self.ip is not None:
            text = self.ip.replace(text)
        if self.keys.is_empty:
            return text
        protected = self._json(text)
        if protected is None:
            lines = text.split(b"\n")
            parts = [self._json(line) for line in lines] if len(lines) > 1 else [None]
            if any(part is not None for part in parts):
                pairs = zip(lines, parts, strict=True)
                return b"\n".join(self.keys.replace(line) if part is None else part for line, part in pairs)
            return self.keys.replace(text)
        return protected

    def _json(self, text: bytes) -> bytes | None:
        """Treat a text by the paths; None where it is no object or array in JSON."""
        try:
            value = bytes(_json(text))
            value.decode()
            if value[:1] not in (b"{", b"["):
                return None
            left = rewrite(value, self.tree)
        except _UNREADABLE:
            return None
        return text if left == value else left


class Letters:
    """What a job's rules do to decode's dead letters."""

    def __init__(self, settings: Privacy, keys: Keys, suppression: Suppression | None) -> None:
        # The type and the name of what could not be read are not known: rules for some count for all, exceptions not.
        self._rules = [
            rule for rule in spread(settings.rules) if not (rule.policy == "keep" and (rule.types or rule.events))
        ]
        self._keys = keys
        self._suppression = suppression
        self._users = Scanner(dict.fromkeys(_USER_KEYS, bytes))
        self._keeps_unreadable = settings.unreadable == "keep"
        self._by_source: dict[str, _Of] = {}
        self._named = {source for rule in self._rules for source in rule.sources}

    def protect(self, letters: pa.RecordBatch) -> pa.RecordBatch:
        """Return the letters with what may be kept; same rows.

        Args:
            letters: schemas.dead_letter.BATCH.
        """
        if not (self._rules or self._suppression):
            return letters
        payloads, attributes, messages = [], [], []
        names = ("payload", "attributes", "message", "source_id")
        for payload, told, message, source in zip(*(letters.column(name).to_pylist() for name in names), strict=True):
            of = self._of(source)
            known = _attributes(told) if told else {}
            kept = self._payload(payload, known, of)
            payloads.append(kept or b"")
            if kept is None and payload:
                message = message[: MESSAGE_CHARACTERS - len(_REMOVED)] + _REMOVED  # noqa: PLW2901
                count(STAGE, "payloads_removed", 1)
            messages.append(message)
            for name, protect in of.attributes.items():
                if name in known:
                    left = protect(known.pop(name))
                    known |= {} if left is None else {name: left}
            attributes.append(encode(known).decode() if known else None)
        columns = {"payload": payloads, "attributes": attributes, "message": messages}
        arrays = [
            pa.array(columns[field.name], field.type) if field.name in columns else letters.column(field.name)
            for field in letters.schema
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=letters.schema)

    def _of(self, source: str) -> _Of:
        name = source if source in self._named else ""
        found = self._by_source.get(name)
        if found is None:
            rules = [rule for rule in self._rules if not rule.sources or name in rule.sources]
            found = self._by_source[name] = _Of(rules, self._keys)
        return found

    def _payload(self, payload: bytes, attributes: dict[str, str], of: _Of) -> bytes | None:
        """Return what may be kept of a payload; None: nothing."""
        try:
            return self._protected(payload, attributes, of)
        except Exception as error:  # noqa: BLE001  never seen; its text may repeat the payload
            _LOG.error("%s: a dead letter's payload could not be protected: %s", STAGE, type(error).__name__)
            return None

    def _protected(self, payload: bytes, attributes: Mapping[str, str], of: _Of) -> bytes | None:
        if payload[:2] == b"\x1f\x8b":
            try:
                text = unpack_body(payload, {"content-encoding": "gzip"}, MAX_BODY_BYTES)
            except Rejected:
                return payload if self._keeps_unreadable else None
            kept = self._text(text, of)
            return payload if kept == text else None if kept is None else gzip.compress(kept, 1, mtime=0)
        if not _is_text(payload, attributes):
            return payload if self._keeps_unreadable else None
        return self._text(payload, of)

    def _text(self, text: bytes, of: _Of) -> bytes | None:
        if self._suppression and any(user in self._suppression for user in self._users.texts(text)):
            return None
        return of.text(text)


def _is_text(payload: bytes, attributes: Mapping[str, str]) -> bool:
    """Say whether keys can be found in some bytes: UTF-8, or at least without what only binary data has."""
    encoding = attributes.get(CONTENT_ENCODING) or attributes.get("content_encoding") or "identity"
    if encoding.strip().lower() not in _PLAIN and payload.lstrip()[:1] not in (b"{", b"["):
        return False
    try:
        payload.decode()
    except UnicodeDecodeError:
        return payload.translate(None, _CONTROL) == payload
    return True

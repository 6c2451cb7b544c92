"""Scan: the values behind given keys in a text that need not be JSON: broken off, twice encoded, in some other charset.

It errs on the side of finding too much. Keys may be spelled with escapes, stand between escaped quotes (JSON within a
JSON text), and have NULs between their letters (UTF-16).
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from millrace.transforms.policies import ProtectJson, encode

# Nothing here backtracks: else a few megabytes of NULs, quotes or backslashes cost hours.
_GAP = rb"\x00*+"
_SPACE = rb"[\s\x00]*+"
_STRING = re.compile(rb'"((?:[^"\\]|\\.)*+)', re.DOTALL)  # whether it ends or not
_NESTED = re.compile(rb'\\++"([^"]*+)')
_PLAIN = re.compile(rb'[^\s\x00,{}\[\]"]+')
_MARKS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)
_decode = msgspec.json.Decoder(str).decode


class _Found(NamedTuple):
    start: int
    end: int
    value: bytes
    """As JSON."""
    inner: bool
    """Only what is between the quotes is to be replaced."""


class Scanner:
    """Finds what stands behind some keys."""

    def __init__(self, acts: Mapping[str, ProtectJson]) -> None:
        self.is_empty = not acts
        self._acts = dict(acts)
        names = b"|".join(b"(?P<k%d>%b)" % (number, _spellings(key)) for number, key in enumerate(acts))
        self._key = re.compile(rb'"%b(?:%b)%b\\*+%b"%b:%b' % (_GAP, names, _GAP, _GAP, _SPACE, _SPACE))
        self._keys = list(acts)

    def replace(self, text: bytes) -> bytes:
        """Return the text with what is left of each value; nothing left: null."""
        parts, done = [], 0
        for key, found in self._found(text):
            left = self._acts[key](found.value)
            left = b"null" if left is None else left
            if found.inner:
                left = left[1:-1] if left[:1] == b'"' else b""
            parts += [text[done : found.start], left]
            done = found.end
        return b"".join([*parts, text[done:]]) if parts else text

    def texts(self, text: bytes) -> Iterator[str]:
        """Give the values as texts."""
        for _, found in self._found(text):
            if found.value != b"null":
                yield _decode(found.value)

    def _found(self, text: bytes) -> Iterator[tuple[str, _Found]]:
        if self.is_empty:
            return
        at = 0
        while match := self._key.search(text, at):
            found = _value(text, match.end())
            if found is not None:
                yield self._keys[int(str(match.lastgroup)[1:])], found
            at = found.end if found is not None else match.end()


def _value(text: bytes, at: int) -> _Found | None:
    begins = text[at : at + 1]
    if begins == b'"':
        match = _STRING.match(text, at)
        assert match is not None
        return _Found(match.start(1), match.end(1), _as_json(match[1]), inner=True)
    if begins == b"\\":
        match = _NESTED.match(text, at)
        if match is None:
            return None
        inner = match[1].rstrip(b"\\")  # those of the quote behind it
        return _Found(match.start(1), match.start(1) + len(inner), _as_json(inner), inner=True)
    if begins in (b"{", b"["):
        end = _end(text, at)
        return _Found(at, end, _as_text(text[at:end]), inner=False)
    match = _PLAIN.match(text, at)
    if match is None:
        return None
    return _Found(at, match.end(), b"null" if match[0] == b"null" else _as_text(match[0]), inner=False)


def _as_json(inner: bytes) -> bytes:
    """Return what stands between two quotes as a JSON text, without NULs; bytes that are no UTF-8 become marks."""
    plain = inner.replace(b"\x00", b"")
    try:
        return encode(_decode(b'"%b"' % plain))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _as_text(plain)


def _as_text(plain: bytes) -> bytes:
    return encode(plain.decode("utf-8", "replace"))


def _end(text: bytes, at: int) -> int:
    """Return where an object or array ends, or the text."""
    depth = 0
    for mark in _MARKS.finditer(text, at):
        if mark[0] in (b"{", b"["):
            depth += 1
        elif mark[0] in (b"}", b"]"):
            depth -= 1
            if depth == 0:
                return mark.end()
    return len(text)


def _spellings(key: str) -> bytes:
    """Return a pattern of a key, however its letters are spelled."""
    letters = [
        rb"(?:%b|(?i:\\u%04x))" % (re.escape(letter.encode()), ord(letter))
        if ord(letter) < 0x10000
        else re.escape(letter.encode())
        for letter in key
    ]
    return _GAP.join(letters)

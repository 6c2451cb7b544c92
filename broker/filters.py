"""Subscription filters: a small language over a message's attributes, parsed once into one function.

    attributes:event                          has the attribute
    attributes.event = "order"                equals; != also holds where it is missing
    hasPrefix(attributes.event, "ord")        starts with
    NOT, -, AND, OR, ( )                      AND and OR may not be mixed without parentheses

Source: https://docs.cloud.google.com/pubsub/docs/subscription-message-filter
"""

import re
from collections.abc import Callable, Mapping

from millrace.broker.errors import invalid

Predicate = Callable[[Mapping[str, str]], bool]

MAX_BYTES = 256

_TOKEN = re.compile(r"""\s*(?:(?P<text>"(?:[^"\\]|\\.)*")|(?P<word>[A-Za-z0-9_/]+)|(?P<sign>!=|[=:.,()\-]))""")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


def parse_filter(source: str) -> Predicate:
    r"""Turn a filter into a predicate on attributes, or raise Refused (INVALID_ARGUMENT).

    >>> parse_filter('attributes.event = "order" AND NOT attributes:test')({"event": "order"})
    True
    """
    if len(source.encode()) > MAX_BYTES:
        raise invalid(f"The filter is longer than {MAX_BYTES} bytes.")
    parser = _Parser(source)
    predicate = parser.expression()
    parser.end()
    return predicate


class _Parser:
    def __init__(self, source: str) -> None:
        self._source = source
        self._tokens: list[tuple[str, str]] = []
        self._at = 0
        position, last = 0, len(source.rstrip())
        while position < last:
            found = _TOKEN.match(source, position)
            if found is None:
                raise self._wrong(f"unexpected character at {position}")
            self._tokens.append((str(found.lastgroup), found.group(str(found.lastgroup))))
            position = found.end()

    def expression(self) -> Predicate:
        terms = [self._term()]
        joined = ""
        while self._word() in ("AND", "OR"):
            operator = self._next()[1]
            if joined and operator != joined:
                raise self._wrong("AND and OR need parentheses where they are mixed")
            joined = operator
            terms.append(self._term())
        if len(terms) == 1:
            return terms[0]
        if joined == "AND":
            return lambda attributes: all(term(attributes) for term in terms)
        return lambda attributes: any(term(attributes) for term in terms)

    def end(self) -> None:
        if self._at < len(self._tokens):
            raise self._wrong(f"unexpected {self._tokens[self._at][1]!r}")

    def _term(self) -> Predicate:
        kind, value = self._next()
        if (kind, value) in (("word", "NOT"), ("sign", "-")):
            inner = self._term()
            return lambda attributes: not inner(attributes)
        if (kind, value) == ("sign", "("):
            predicate = self.expression()
            self._expect(")")
            return predicate
        if (kind, value) == ("word", "hasPrefix"):
            return self._prefix()
        if (kind, value) == ("word", "attributes"):
            return self._attribute()
        raise self._wrong(f"expected attributes, hasPrefix, NOT or (, got {value!r}")

    def _prefix(self) -> Predicate:
        self._expect("(")
        if self._next() != ("word", "attributes"):
            raise self._wrong('hasPrefix takes an attribute: hasPrefix(attributes.NAME, "PREFIX")')
        self._expect(".")
        name = self._name()
        self._expect(",")
        prefix = self._text()
        self._expect(")")
        return lambda attributes: name in attributes and attributes[name].startswith(prefix)

    def _attribute(self) -> Predicate:
        sign = self._next()[1]
        if sign == ":":
            name = self._name()
            return lambda attributes: name in attributes
        if sign != ".":
            raise self._wrong("attributes must be followed by . or :")
        name = self._name()
        operator = self._next()[1]
        if operator not in ("=", "!="):
            raise self._wrong("an attribute is compared by = or !=")
        value = self._text()
        if operator == "=":
            return lambda attributes: name in attributes and attributes[name] == value
        return lambda attributes: name not in attributes or attributes[name] != value

    def _name(self) -> str:
        kind, value = self._next()
        if kind == "text":
            return _unquoted(value)
        if kind != "word" or value in ("AND", "OR", "NOT"):
            raise self._wrong("expected an attribute's name")
        while self._peek() == ("sign", "-"):  # a hyphen belongs to the name where a name goes on
            self._next()
            value += "-" + self._next()[1]
        return value

    def _text(self) -> str:
        kind, value = self._next()
        if kind != "text":
            raise self._wrong(f"expected a text in double quotes, got {value!r}")
        return _unquoted(value)

    def _word(self) -> str:
        kind, value = self._peek()
        return value if kind == "word" else ""

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "the end")

    def _next(self) -> tuple[str, str]:
        token = self._peek()
        if token[0] == "end":
            raise self._wrong("it ends too early")
        self._at += 1
        return token

    def _expect(self, sign: str) -> None:
        found = self._next()
        if found != ("sign", sign):
            raise self._wrong(f"expected {sign!r}, got {found[1]!r}")

    def _wrong(self, why: str) -> Exception:
        return invalid(f"Invalid filter: {why}. (filter={self._source})")


def _unquoted(text: str) -> str:
    def plain(found: re.Match[str]) -> str:
        return chr(int(found[2], 16)) if found[2] else _ESCAPES.get(found[1], found[1])

    return re.sub(r"\\(u([0-9A-Fa-f]{4})|.)", plain, text[1:-1], flags=re.DOTALL)

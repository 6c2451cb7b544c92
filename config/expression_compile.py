"""Compile: an expression's text becomes a tree, or a mistake with its column."""

import ast
import dataclasses
import datetime as dt
import difflib
import functools
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import lark
import pyarrow as pa
import pyarrow.compute as pc

from millrace.config import expression_tree as tree
from millrace.config.expression_tree import Kind, kind_of


class ExpressionError(ValueError):
    """An expression cannot be used: where in it (column, from 1), what is wrong and what to do."""

    def __init__(self, column: int, text: str) -> None:
        super().__init__(f"column {column}: {text}")
        self.column = column


JSON_COLUMNS = ("properties", "traits", "context_rest", "rest")
"""The event's columns of JSON text: only they have paths."""


def compile_text(text: str, schema: pa.Schema, start: str) -> Any:
    """Return the tree of a text, read from one of the grammar's starts.

    Raises:
        ExpressionError: it is none, or does not fit the columns.
    """
    try:
        parsed = _parser().parse(text, start=start)
    except lark.exceptions.UnexpectedInput as error:
        raise _not_understood(error, text) from error
    try:
        return _Compile({field.name: field.type for field in schema}).transform(parsed)
    except lark.exceptions.VisitError as error:
        raise error.orig_exc from None


@functools.cache
def _parser() -> lark.Lark:
    grammar = resources.files(__package__).joinpath("expressions.lark").read_text(encoding="utf-8")
    return lark.Lark(
        grammar, parser="lalr", start=["start", "value"], propagate_positions=True, maybe_placeholders=False
    )


_WORDS = {
    "OPERATOR": "a comparison (== != < <= > >=)",
    "RELATION": "contains, startswith, endswith or matches",
    "_IN": "in",
    "_IS": "is null",
    "_AND": "and",
    "_OR": "or",
    "NAME": "a column",
    "STRING": "a text in quotes",
    "NUMBER": "a number",
    "NULL": "null",
    "RPAR": ")",
    "RSQB": "]",
}


def _not_understood(error: lark.exceptions.UnexpectedInput, text: str) -> ExpressionError:
    names = set(getattr(error, "expected", None) or getattr(error, "allowed", None) or ())
    names -= {name for name, pair in (("RPAR", "()"), ("RSQB", "[]")) if text.count(pair[0]) <= text.count(pair[1])}
    wanted = ", ".join(word for name, word in _WORDS.items() if name in names)
    token = getattr(error, "token", None)
    if not text.strip():
        return ExpressionError(1, 'it is empty; write a condition such as event == "Order Completed"')
    if isinstance(error, lark.exceptions.UnexpectedCharacters):
        found, column = repr(text[error.pos_in_stream :][:1]), int(error.pos_in_stream or 0) + 1
    elif token is None or token.type == "$END":
        found, column = "the end", len(text) + 1
    else:
        found, column = repr(str(token)), int(token.start_pos or 0) + 1
    return ExpressionError(column, f"{found} cannot stand here" + (f"; expected {wanted}" if wanted else ""))


_FITS = {
    Kind.TEXT: "a text in quotes",
    Kind.NUMBER: "a number",
    Kind.FLAG: "true or false",
    Kind.TIME: 'a time in quotes, such as "2026-12-31T18:00:00Z"',
    Kind.DAY: 'a day in quotes, such as "2026-12-31"',
}
_NAMES = {
    Kind.TEXT: "text",
    Kind.NUMBER: "a number",
    Kind.FLAG: "true or false",
    Kind.TIME: "a time",
    Kind.DAY: "a day",
    Kind.OTHER: "a nested value",
    Kind.JSON: "a JSON value",
}
_FLIPPED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}

_Operand = tree.Column | tree.Path | tree.Literal


def _start(meta: lark.tree.Meta) -> int:
    return int(meta.start_pos) + 1


@lark.v_args(meta=True)
class _Compile(lark.Transformer[lark.Token, tree.Node]):
    """Makes nodes of what was parsed, and checks that kinds fit."""

    def __init__(self, types: Mapping[str, pa.DataType]) -> None:
        super().__init__()
        self._types = types

    def any(self, _: Any, parts: Sequence[tree.Node]) -> tree.Node:
        return tree.AnyOf(tuple(parts))

    def all(self, _: Any, parts: Sequence[tree.Node]) -> tree.Node:
        return tree.AllOf(tuple(parts))

    def negate(self, _: Any, parts: Sequence[tree.Node]) -> tree.Node:
        return tree.Not(parts[0])

    def literal(self, meta: Any, parts: Sequence[lark.Token]) -> tree.Literal:
        (token,) = parts
        at = _start(meta)
        match token.type:
            case "STRING":
                try:
                    return tree.Literal(at, Kind.TEXT, ast.literal_eval(str(token)))
                except (SyntaxError, ValueError) as error:
                    raise ExpressionError(at, f"{token} is no text: write \\\\ for a backslash") from error
            case "NUMBER":
                whole = token.lstrip("-").isdigit() and len(token) < 19  # else past 64 bits
                return tree.Literal(at, Kind.NUMBER, int(token) if whole else float(token))
            case "NULL":
                return tree.Literal(at, Kind.OTHER, None)
        return tree.Literal(at, Kind.FLAG, token.lower() == "true")

    def path(self, meta: Any, parts: Sequence[lark.Token]) -> tree.Column | tree.Path:
        at, name = _start(meta), str(parts[0])
        if name not in self._types:
            near = difflib.get_close_matches(name, self._types, n=1)
            hint = f"did you mean {near[0]}?" if near else "docs/event_model.md lists them"
            raise ExpressionError(at, f"{name} is not a column; {hint}")
        if len(parts) == 1:
            return tree.Column(at, kind_of(self._types[name]), name, self._types[name])
        if name not in JSON_COLUMNS:
            raise ExpressionError(at, f"{name} has no members; only {', '.join(JSON_COLUMNS)} hold JSON")
        return tree.Path(at, Kind.JSON, name, tuple(map(_key, parts[1:])))

    def compare(self, _: Any, parts: Sequence[Any]) -> tree.Node:
        left, sign, right = parts
        operator = "==" if sign == "=" else str(sign)
        if isinstance(left, tree.Literal):
            left, right, operator = right, left, _FLIPPED[operator]
        _demand_column(left)
        if isinstance(right, tree.Literal):
            right = _fitted(left, right)
        elif left.kind is Kind.JSON:
            left, right, operator = right, left, _FLIPPED[operator]
        kinds = {left.kind, right.kind} - {Kind.JSON}
        if Kind.OTHER in kinds or len(kinds) > 1 or (Kind.JSON in {left.kind, right.kind} and kinds & _TIMES):
            raise ExpressionError(
                left.at, f"{left} is {_NAMES[left.kind]} and {right} is {_NAMES[right.kind]}: they cannot be compared"
            )
        if Kind.FLAG in kinds and operator not in {"==", "!="}:
            raise ExpressionError(left.at, f"{left} is true or false: it has no order; use == or !=")
        return tree.Compare(left, operator, right)

    def among(self, _: Any, parts: Sequence[Any]) -> tree.Node:
        left, *literals = parts
        _demand_column(left)
        fitted = [_fitted(left, literal) for literal in literals]
        if len({literal.kind for literal in fitted}) > 1:
            raise ExpressionError(fitted[0].at, "a list holds values of one kind: texts, or numbers; split it with or")
        return tree.Among(left, tuple(fitted))

    def not_among(self, meta: Any, parts: Sequence[Any]) -> tree.Node:
        return tree.Not(self.among(meta, parts))

    def is_null(self, _: Any, parts: Sequence[Any]) -> tree.Node:
        _demand_column(parts[0])
        return tree.IsNull(parts[0])

    def is_not_null(self, meta: Any, parts: Sequence[Any]) -> tree.Node:
        return tree.Not(self.is_null(meta, parts))

    def relate(self, _: Any, parts: Sequence[Any]) -> tree.Node:
        left, token, right = parts
        word = token.lower()
        _demand_column(left)
        if left.kind not in {Kind.TEXT, Kind.JSON}:
            raise ExpressionError(left.at, f"{left} is {_NAMES[left.kind]}: only texts can be asked for {word}")
        if not isinstance(right, tree.Literal) or right.kind is not Kind.TEXT:
            raise ExpressionError(right.at, f"after {word} there has to be a text in quotes")
        if word == "matches":
            try:
                pc.match_substring_regex(pa.array([""]), right.of)
            except pa.ArrowInvalid as error:
                reason = str(error).rpartition("regular expression: ")[2]
                raise ExpressionError(right.at, f"no regular expression (RE2's syntax): {reason}") from error
        return tree.Relate(left, word, right)

    def truth(self, _: Any, parts: Sequence[Any]) -> tree.Node:
        (operand,) = parts
        _demand_column(operand)
        if operand.kind not in {Kind.FLAG, Kind.JSON}:
            raise ExpressionError(
                operand.at, f"{operand} is {_NAMES[operand.kind]}, not true or false: compare it with something"
            )
        return tree.Truth(operand)


_TIMES = {Kind.TIME, Kind.DAY}


def _key(token: lark.Token) -> str | int:
    if token.type == "STRING":
        return str(ast.literal_eval(str(token)))
    if token.type == "NUMBER":
        if not token.isdigit():
            raise ExpressionError(int(token.start_pos or 0) + 1, f"[{token}]: a place in a list is a number from 0")
        return int(token)
    return str(token)


def _demand_column(operand: _Operand) -> None:
    if isinstance(operand, tree.Literal):
        raise ExpressionError(operand.at, f"{operand}: on one side there has to be a column or a path in one")


def _fitted(left: _Operand, literal: tree.Literal) -> tree.Literal:
    """Return a literal as a value of the column that it is compared with."""
    if literal.of is None:
        raise ExpressionError(literal.at, "nothing equals null; write `is null` or `is not null`")
    if literal.kind is left.kind or left.kind is Kind.JSON:
        return literal
    if left.kind in _TIMES and literal.kind is Kind.TEXT:
        try:
            if left.kind is Kind.DAY:
                return dataclasses.replace(literal, kind=Kind.DAY, of=dt.date.fromisoformat(literal.of))
            at = dt.datetime.fromisoformat(literal.of)
            return dataclasses.replace(literal, kind=Kind.TIME, of=at if at.tzinfo else at.replace(tzinfo=dt.UTC))
        except ValueError:
            pass
    wanted = _FITS.get(left.kind, "nothing but null")
    raise ExpressionError(literal.at, f"{left} is {_NAMES[left.kind]}: compare it with {wanted}, not {literal}")

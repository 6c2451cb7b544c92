"""Expressions: which rows of a batch something is for, such as `event == "Order Completed" and properties.total > 100`.

A small language over columns and JSON paths, with nulls as SQL has them: a comparison with null is neither true nor
false, and only rows for which the whole is true are selected. docs/expressions.md describes it for people. Checked
against the columns' types when it is read, computed on whole columns.
"""

import dataclasses
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from millrace.config import expression_tree as tree
from millrace.config.expression_compile import ExpressionError, compile_text

__all__ = ["Expression", "ExpressionError", "Value", "compile_expression", "compile_value"]


@dataclasses.dataclass(frozen=True)
class Expression:
    """A condition that can be computed; made by `compile_expression`. Small, and pickles."""

    text: str
    root: tree.Node
    columns: tuple[str, ...]
    """The columns that it looks at."""

    def mask(self, batch: pa.RecordBatch) -> pa.BooleanArray:
        """Return for each row whether it is selected, without nulls. A column that the batch lacks is null.

        Args:
            batch: any columns, of the types that the expression was compiled for.
        """
        return pc.fill_null(self.root.value(tree.Rows(batch, self.root)), False)

    def __str__(self) -> str:
        return self.text


def compile_expression(text: str, schema: pa.Schema) -> Expression:
    """Read an expression.

    Args:
        text: the expression.
        schema: the columns that there are.

    Raises:
        ExpressionError: it is none, or does not fit the columns.
    """
    root = compile_text(text, schema, "start")
    columns = dict.fromkeys(node.column for node in tree.walk(root) if isinstance(node, tree.Column | tree.Path))
    return Expression(text, root, tuple(columns))


@dataclasses.dataclass(frozen=True)
class Value:
    """A column, or a path in one, whose values are asked for; made by `compile_value`. Small, and pickles."""

    text: str
    of: tree.Column | tree.Path

    def values(self, batch: pa.RecordBatch) -> list[Any]:
        """Return each row's value: a text, a number, a boolean or a time; None where there is nothing of the kind."""
        found = self.of.values(tree.Rows(batch, self.of))
        return [None if isinstance(value, dict | list) else value for value in found]


def compile_value(text: str, schema: pa.Schema) -> Value:
    """Read a column's name, or a path such as `properties.account_id`.

    Raises:
        ExpressionError: it is none.
    """
    return Value(text, compile_text(text, schema, "value"))

"""Enrichment: a Step whose columns follow from some columns of the same row, value by distinct value."""

import abc
import functools
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import pyarrow as pa

from millrace.schemas import avro
from millrace.transforms.enrich.distinct import Memo
from millrace.transforms.steps import Applied, Step, Users, with_columns


class Enrichment(Step):
    """Looks up. Settings only, frozen and comparable: equal ones share what they have looked up in a process."""

    reads: Sequence[str] = ()
    """The columns that are looked up together."""

    @abc.abstractmethod
    def look_up(self, *values: Any) -> Sequence[Any]:
        """Return a value for each of `adds`, for one value of each of `keys`; None: null."""

    def keys(self, batch: pa.RecordBatch) -> Sequence[pa.Array]:
        """Return the columns to look up."""
        return [batch.column(name) for name in self.reads]

    def apply(self, batch: pa.RecordBatch, users: Users) -> Applied:  # noqa: ARG002  the same for every user
        """Append the columns."""
        return Applied(with_columns(batch, self.adds, memo_of(self).columns(self.keys(batch))))


@functools.lru_cache(maxsize=64)
def memo_of(enrichment: Enrichment) -> Memo:
    """Return what this process remembers of an enrichment's look-ups."""
    return Memo(enrichment.name, enrichment.look_up, enrichment.adds)


def declared(name: str) -> tuple[pa.Field, ...]:
    """Return the columns that `schemas/added/NAME.avsc` declares."""
    return tuple(avro.arrow_schema(avro.load(f"added/{name}")))


@functools.cache
def version_of(distribution: str) -> str:
    """Return the version of an installed package; `unknown` where Python cannot tell."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"

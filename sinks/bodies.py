"""Bodies: rows become the bodies of messages, in the format that a queue's sink is set to."""

import asyncio
from collections.abc import Iterable

from millrace.sinks.avro_rows import NoAvroError, avro_rows, check_name
from millrace.sinks.sink import CannotOpenSinkError, Delivery, SinkDownError
from millrace.sinks.storage import Location, StorageError, explain, locate

FORMATS = ("json", "avro")


def check_format(form: str, schemas: str) -> None:
    """Raise ValueError where a sink's `format` and `schemas` do not fit."""
    if form not in FORMATS:
        raise ValueError(f"format is json or avro, got {form!r}")
    if form == "avro" and not schemas:
        raise ValueError(
            "format avro needs schemas: a folder or gs://bucket/folder where readers find schemas by their fingerprints"
        )
    if form != "avro" and schemas:
        raise ValueError("schemas is for format avro only")


def check_names(form: str, columns: Iterable[str]) -> None:
    """Raise ValueError where bodies of that format cannot hold columns of these names."""
    for column in columns if form == "avro" else ():
        check_name(column)


class Bodies:
    """Makes bodies; writes each Avro schema to its file before the first body that names it."""

    def __init__(self, form: str, schemas: str) -> None:
        """Prepare.

        Args:
            form: json: one object a row, without nulls; avro: single-object encoding (sinks/avro_rows.py).
            schemas: where the schemas go, each as `<fingerprint>.avsc`.

        Raises:
            CannotOpenSinkError: `schemas` names no place.
        """
        self._place: Location | None = None
        self._written: set[str] = set()
        if form == "avro":
            try:
                self._place = locate(schemas)
            except StorageError as error:
                raise CannotOpenSinkError(f"schemas: {error}") from error

    async def of(self, delivery: Delivery) -> tuple[list[bytes], str]:
        """Return a body for each row, and the fingerprint of their schema: empty for JSON.

        Raises:
            SinkDownError: the columns of the route have no Avro schema, or it cannot be written.
        """
        if self._place is None:
            return delivery.json(), ""
        try:
            rows = avro_rows(delivery.rows.schema)
        except NoAvroError as error:
            raise SinkDownError(f"route {delivery.route}: {error}") from error
        if rows.fingerprint not in self._written:
            path = f"{rows.fingerprint}.avsc"
            try:
                await asyncio.to_thread(self._place.store, path, memoryview(rows.text))
            except OSError as error:
                raise SinkDownError(f"schemas: {explain(self._place, error)}") from error
            self._written.add(rows.fingerprint)
        return rows.encode(delivery.rows), rows.fingerprint

"""Avro rows: a batch of columns becomes one Avro datum a row, in single-object encoding: it names its schema itself.

Single-object encoding is C3 01, then the schema's CRC-64-AVRO fingerprint as 8 bytes, little-endian, then the datum
(https://avro.apache.org/docs/1.12.0/specification/#single-object-encoding). So a reader that knows the schemas by their
fingerprints needs nothing else, and a column that a route gets later changes the fingerprint, not the reader.
"""

import functools
import io
import json
import re
from typing import Any

import fastavro
import fastavro.schema
import pyarrow as pa

from millrace.sinks.column_values import column_values

_MARKER = b"\xc3\x01"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RECORD = "millrace.sinks.Event"
# As Arrow's type, cast for fastavro: numbers for times, which costs a third of datetimes (both directions are exact).
_PLAIN: dict[pa.DataType, tuple[Any, pa.DataType]] = {
    pa.null(): ("null", pa.null()),
    pa.bool_(): ("boolean", pa.bool_()),
    **dict.fromkeys((pa.int8(), pa.int16(), pa.int32(), pa.uint8(), pa.uint16()), ("int", pa.int32())),
    **dict.fromkeys((pa.int64(), pa.uint32()), ("long", pa.int64())),
    pa.uint64(): ({"type": "bytes", "logicalType": "decimal", "precision": 20, "scale": 0}, pa.decimal128(20, 0)),
    **dict.fromkeys((pa.float16(), pa.float32()), ("float", pa.float32())),
    pa.float64(): ("double", pa.float64()),
    **dict.fromkeys((pa.string(), pa.large_string(), pa.string_view()), ("string", pa.large_string())),
    **dict.fromkeys((pa.binary(), pa.large_binary(), pa.binary_view()), ("bytes", pa.large_binary())),
    pa.date32(): ({"type": "int", "logicalType": "date"}, pa.int32()),
    pa.time32("ms"): ({"type": "int", "logicalType": "time-millis"}, pa.int32()),
    pa.time64("us"): ({"type": "long", "logicalType": "time-micros"}, pa.int64()),
}
_UNITS = {"ms": "millis", "us": "micros", "ns": "nanos"}


class NoAvroError(ValueError):
    """Rows of these columns cannot be Avro; one sentence that says which column, and what to do."""


class AvroRows:
    """Encodes rows of one Arrow schema.

    Attributes:
        schema: the Avro schema, as parsed JSON.
        text: the schema, as the bytes of its file.
        fingerprint: CRC-64-AVRO of its parsing canonical form, 16 hexadecimal digits in the order of the bytes.
    """

    def __init__(self, columns: pa.Schema) -> None:
        """Make the Avro schema of columns: same names, same order; what Arrow calls nullable is a union with null.

        Raises:
            NoAvroError: a column whose name or type Avro does not have.
        """
        self.schema, self._plain = _record(_RECORD, columns)
        self.text = json.dumps(self.schema, indent=1).encode()
        self.fingerprint: str = fastavro.schema.fingerprint(
            fastavro.schema.to_parsing_canonical_form(self.schema), "CRC-64-AVRO"
        )
        self._head = _MARKER + bytes.fromhex(self.fingerprint)
        self._parsed = fastavro.parse_schema(self.schema)
        self._names = columns.names

    def encode(self, rows: pa.RecordBatch) -> list[bytes]:
        """Return each row in single-object encoding.

        Raises:
            ValueError: a value that its Avro type cannot hold: null where the column says it is never.
        """
        columns = [
            column_values(column if column.type == plain else column.cast(plain))
            for column, plain in zip(rows.columns, self._plain, strict=True)
        ]
        encoded, buffer = [], io.BytesIO()
        for values in zip(*columns, strict=True):
            buffer.seek(0)
            buffer.write(self._head)
            fastavro.schemaless_writer(buffer, self._parsed, dict(zip(self._names, values, strict=True)))
            buffer.truncate()
            encoded.append(buffer.getvalue())
        return encoded


@functools.lru_cache(maxsize=64)
def avro_rows(columns: pa.Schema) -> AvroRows:
    """Return what encodes rows of these columns. Raises NoAvroError."""
    return AvroRows(columns)


def check_name(column: str) -> None:
    """Raise NoAvroError where a column's name is none in Avro."""
    if not _NAME.fullmatch(column):
        raise NoAvroError(
            f"the column {column!r} has no Avro name (letters, digits and _): rename it in the route's columns"
        )


def _record(name: str, fields: Any) -> tuple[dict[str, Any], list[pa.DataType]]:
    avro, plain = [], []
    for field in fields:
        check_name(field.name)
        kind, arrow = _type(field.type, f"{name}.{field.name}")
        if field.nullable and kind != "null":
            avro.append({"name": field.name, "type": ["null", kind], "default": None})
        else:
            avro.append({"name": field.name, "type": kind})
        plain.append(arrow)
    return {"type": "record", "name": name, "fields": avro}, plain


def _type(arrow: pa.DataType, name: str) -> tuple[Any, pa.DataType]:
    """Return a type of Avro's, and the Arrow type whose Python values fastavro takes for it."""
    if arrow in _PLAIN:
        return _PLAIN[arrow]
    if pa.types.is_timestamp(arrow) and arrow.unit in _UNITS:
        local = "" if arrow.tz else "local-"
        return {"type": "long", "logicalType": f"{local}timestamp-{_UNITS[arrow.unit]}"}, pa.int64()
    if pa.types.is_decimal(arrow) and arrow.scale >= 0:
        return {"type": "bytes", "logicalType": "decimal", "precision": arrow.precision, "scale": arrow.scale}, arrow
    if pa.types.is_dictionary(arrow):
        return _type(arrow.value_type, name)
    if pa.types.is_list(arrow) or pa.types.is_large_list(arrow) or pa.types.is_fixed_size_list(arrow):
        item, plain = _type(arrow.value_type, f"{name}.item")
        return {"type": "array", "items": _or_null(item)}, pa.list_(plain)
    if pa.types.is_map(arrow) and arrow.key_type == pa.string():
        item, plain = _type(arrow.item_type, f"{name}.value")
        return {"type": "map", "values": _or_null(item)}, pa.map_(pa.string(), plain)
    if pa.types.is_struct(arrow):
        record, plains = _record(name, arrow.fields)
        return record, pa.struct([field.with_type(plain) for field, plain in zip(arrow.fields, plains, strict=True)])
    column = name.removeprefix(f"{_RECORD}.")
    raise NoAvroError(
        f"the column {column!r} has the type {arrow}, which Avro does not have: leave it out of the route"
    )


def _or_null(kind: Any) -> Any:
    return kind if kind == "null" else ["null", kind]

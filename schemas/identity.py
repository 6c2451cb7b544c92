"""Identities: which id belongs to whose sequence, from when on; and the column that this adds to an event."""

import pyarrow as pa

from millrace.schemas import avro
from millrace.schemas.event import RECEIPT

SCHEMA: pa.Schema = avro.arrow_schema(avro.load("identity"))

BATCH: pa.Schema = SCHEMA.append(RECEIPT)
"""As it travels between stages. Its receipt is always -1: the linking event itself carries that of its message."""

(LINKED_AT,) = avro.arrow_schema(avro.load("added/identity"))

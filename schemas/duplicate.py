"""Duplicates: copies of events that are in the archive, as small records."""

import pyarrow as pa

from millrace.schemas import avro
from millrace.schemas.event import RECEIPT

SCHEMA: pa.Schema = avro.arrow_schema(avro.load("duplicate"))

BATCH: pa.Schema = SCHEMA.append(RECEIPT)
"""As it travels between stages."""

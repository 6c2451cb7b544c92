"""Undelivered: the dead letters of delivery, one record for each event that a sink did not take."""

import pyarrow as pa

from millrace.schemas import avro

SCHEMA: pa.Schema = avro.arrow_schema(avro.load("undelivered"))

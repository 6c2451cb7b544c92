"""What the tests of the SDKs stand on: a broker, the collector, and the rows that come out behind them."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from millrace.schemas.envelope import Envelope
from millrace.schemas.event import ARCHIVE
from millrace.transforms.decode import decode_envelopes
from tests.support.pubsub import PubSub, wait_until

Row = dict[str, Any]

JSON_COLUMNS = ("properties", "traits", "context_rest", "rest")
TIMES = tuple(field.name for field in ARCHIVE if pa.types.is_timestamp(field.type))
PLACES = ("envelope_id", "envelope_index", "date", "is_late", "late_by_ms", "order_index")


@dataclasses.dataclass(frozen=True)
class Stand:
    """A collector at `url`, and a subscription to what it publishes."""

    url: str
    keys: Mapping[str, str]
    """Write keys by source: `server`, `web`."""
    pubsub: PubSub
    subscription: str

    def rows_until(self, enough: Callable[[Sequence[Row]], bool], timeout_s: float = 90.0) -> Sequence[Row]:
        """Return what decode makes of the messages in the broker, once that is enough; nothing may be refused."""
        rows: list[Row] = []

        def pulled() -> bool:
            received = self.pubsub.pull(self.subscription, at_once=True)
            if received:
                rows.extend(decoded(received))
                self.pubsub.ack(self.subscription, *received)
            return enough(rows)

        try:
            wait_until(pulled, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"not enough: {[(row['type'], row['event']) for row in rows]}") from error
        return rows


def decoded(received: Sequence[Any]) -> Sequence[Row]:
    """Return the rows that decode makes of Pub/Sub messages."""
    now_us = time.time_ns() // 1_000
    envelopes = [
        Envelope(each.message.data, dict(each.message.attributes), each.message.message_id, now_us, now_us)
        for each in received
    ]
    decoding = decode_envelopes(envelopes, now_us)
    assert decoding.letters.num_rows == 0, decoding.letters.to_pylist()
    rows: Sequence[Row] = decoding.batch.to_pylist()
    return rows


def told(row: Row) -> Row:
    """Return what a row tells of its event: its columns but times and places, without nulls, JSON read."""
    kept = {name: value for name, value in row.items() if name in ARCHIVE.names and name not in TIMES + PLACES}
    return {
        name: json.loads(value) if name in JSON_COLUMNS else value for name, value in kept.items() if value is not None
    }


def by_id(rows: Sequence[Row]) -> Mapping[str, Row]:
    """Return rows by message id, of copies the first."""
    return {row["message_id"]: row for row in reversed(rows)}

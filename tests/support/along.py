"""What sessions and touches have to be, told event by event in plain Python; and ordered windows to tell it of."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from millrace.transforms.order import order, release
from tests.support.batches import batch

Row = dict[str, Any]
_MINUTE_US = 60_000_000


def windows(rows: Sequence[Row], *, wait_s: float = 10, window_s: float = 5, shards: int = 1) -> list[pa.RecordBatch]:
    """Return what OrderPerUser makes of rows: ordered batches, one for each shard and window, by shard and time."""
    pieces = release(batch(rows), wait_us=round(wait_s * 1e6), window_us=round(window_s * 1e6), shards=shards)
    by_place: dict[tuple[int, int], list[pa.RecordBatch]] = {}
    for piece in pieces:
        by_place.setdefault((piece.shard, piece.window_us), []).append(piece.batch)
    return [order(by_place[place])[0] for place in sorted(by_place)]


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Return rows by user and their order."""
    return sorted(rows, key=lambda row: (row["user_key"], row["order_index"]))


def micros(at: Any) -> int:
    """Return a row's time in µs since the epoch."""
    return int(at.value) if hasattr(at, "value") else round(at.timestamp() * 1_000_000)


def sessions_of(rows: Iterable[Row], *, gap_min: float = 30, longest_h: float = 24) -> dict[str, tuple[int, int, str]]:
    """Return by message_id: session_index, start in µs, and what made the session; nobody is forgotten."""
    told = {}
    user, known = None, list[Row]()
    for row in in_order(rows):
        if row["user_key"] != user:
            user, known = row["user_key"], []
        at, sdk = micros(row["occurred_at"]), json.loads(row["context_rest"] or "{}").get("sessionId")
        if sdk is not None:
            fits = [each for each in known if each["sdk"] == str(sdk)]
        else:
            fits = [
                each
                for each in known
                if each["start"] <= at <= each["start"] + longest_h * 60 * _MINUTE_US
                and at <= each["end"] + gap_min * _MINUTE_US
            ]
        if fits:
            mine = max(fits, key=lambda each: (each["start"], each["index"]))
        else:
            is_late = any(each["start"] > at for each in known)
            by = "sdk" if sdk is not None else "late" if is_late else "gap"
            index = max((each["index"] for each in known), default=0) + 1
            mine = {"sdk": None if sdk is None else str(sdk), "start": at, "end": at, "index": index, "by": by}
            known = [*known, mine][-3:]
        mine["end"] = max(mine["end"], at)
        known = [*(each for each in known if each is not mine), mine]  # the least lately touched first
        told[row["message_id"]] = (mine["index"], mine["start"], mine["by"])
    return told


def touches_of(rows: Iterable[Row]) -> dict[str, tuple[str | None, str | None]]:
    """Return by message_id: the source of the first and of the last touch, of rows whose touches are their sources."""
    told = {}
    user, first, last, last_at = None, None, None, 0
    for row in in_order(rows):
        if row["user_key"] != user:
            user, first, last, last_at = row["user_key"], None, None, 0
        source = row["context_campaign_source"]
        if source is not None:
            first = first or source
            if micros(row["occurred_at"]) > last_at:
                last, last_at = source, micros(row["occurred_at"])
        told[row["message_id"]] = (first, last)
    return told

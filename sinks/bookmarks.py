"""Bookmarks: how far the archive's followers are, so that compaction leaves alone what they have yet to read.

A small file for each follower beside the table's log, which Delta's own tools ignore (`_` in front).
"""

import time

import msgspec
import pyarrow.fs as pafs

from millrace.sinks.storage import Location

FOLDER = "_followers"

_MARGIN_MS = 600_000
"""A large file is written some time before its commit."""

_LONGEST_HOLD_MS = 7 * 86_400_000
"""As long as Pub/Sub keeps what a subscription has not acknowledged, by default
(https://cloud.google.com/pubsub/docs/subscription-properties)."""


class Bookmark(msgspec.Struct):
    """Where a follower is."""

    oldest_unread_us: int
    """When the oldest commit was made that it may read again, microseconds since the epoch."""
    written_us: int


def write_bookmark(location: Location, follower: str, oldest_unread_us: int) -> None:
    """Say where a follower is.

    Raises:
        OSError: the storage refused it.
    """
    body = msgspec.json.encode(Bookmark(oldest_unread_us, time.time_ns() // 1_000))
    if location.local is not None:
        (location.local / FOLDER).mkdir(exist_ok=True)
    location.store(f"{FOLDER}/{follower}.json", memoryview(body))


def held_since_ms(location: Location) -> int:
    """Return from when on files are not to be replaced, ms since the epoch: some follower may read them yet.

    Nobody holds files for more than 7 days.
    """
    found = location.files.get_file_info(pafs.FileSelector(FOLDER, allow_not_found=True))
    now_ms = time.time_ns() // 1_000_000
    held = now_ms
    for info in found:
        if not info.base_name.endswith(".json"):
            continue
        with location.files.open_input_stream(info.path) as stream:
            bookmark = msgspec.json.decode(stream.read(), type=Bookmark)
        since_ms = bookmark.oldest_unread_us // 1_000 - _MARGIN_MS
        if since_ms > now_ms - _LONGEST_HOLD_MS:
            held = min(held, since_ms)
    return held

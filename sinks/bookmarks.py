"""Bookmarks: how far the archive's followers are, so that compaction leaves alone what they have yet to read.

A small file for each follower beside the table's log, which Delta's own tools ignore (`_` in front).
"""

import time

import msgspec
import pyarrow.fs as pafs

from millrace.sinks.storage import Location, StorageError

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

    Where there is no table yet, nothing can be merged, and nothing is written.

    Raises:
        OSError: the storage refused it.
    """
    if location.local is not None and not (location.local / "_delta_log").is_dir():
        return
    body = msgspec.json.encode(Bookmark(oldest_unread_us, time.time_ns() // 1_000))
    if location.local is not None:
        (location.local / FOLDER).mkdir(exist_ok=True)
    location.store(f"{FOLDER}/{follower}.json", memoryview(body))


def held_since_ms(location: Location) -> int:
    """Return from when on files are not to be replaced, ms since the epoch: some follower may read them yet.

    Nobody holds files for more than 7 days, and who has said nothing for so long holds none.

    Raises:
        StorageError: a bookmark cannot be understood.
    """
    found = location.files.get_file_info(pafs.FileSelector(FOLDER, allow_not_found=True))
    now_ms = time.time_ns() // 1_000_000
    held = now_ms
    for info in found:
        if not info.base_name.endswith(".json"):
            continue
        try:
            with location.files.open_input_stream(info.path) as stream:
                bookmark = msgspec.json.decode(stream.read(), type=Bookmark)
        except FileNotFoundError:  # deleted meanwhile
            continue
        except msgspec.MsgspecError as error:
            raise StorageError(
                f"{location.uri}/{info.path} is no bookmark ({error}): delete it; a sink in use writes its own anew."
            ) from error
        if bookmark.written_us // 1_000 > now_ms - _LONGEST_HOLD_MS:
            held = min(held, max(bookmark.oldest_unread_us // 1_000 - _MARGIN_MS, now_ms - _LONGEST_HOLD_MS))
    return held

"""What the spool says of itself, for health, metrics and the log."""

from typing import NamedTuple


class Stats(NamedTuple):
    """What is in the spool, and what happened since it was opened."""

    messages: int
    """On disk and not settled."""
    bytes: int
    """Of all segments on disk, settled messages in them included. At most the capacity, but for what was adopted."""
    capacity_bytes: int
    oldest_age_s: float
    """Of the oldest message that is not settled; 0.0 without one."""
    waiting: int
    """Appends that wait for the disk."""
    appended: int
    syncs: int
    """Groups of appends that were brought to disk, each by one fsync."""
    corrupt_frames: int
    """Stretches of damaged bytes, of one frame or more."""
    set_aside: int
    """How many of them are in files of their own."""
    torn_tails: int
    """Segments whose last write a crash interrupted."""
    unreadable_segments: int
    """Left alone with what is unsettled in them, because the disk does not read them."""
    refusing: str | None
    """Why the last write failed, "full" or "broken"; None when it went well."""

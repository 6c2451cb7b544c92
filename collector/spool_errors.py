"""Why a message is not in the spool, or the spool does not open."""

import errno

RETRY_AFTER_S = 10.0
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of the operating system that go away when there is room."""


class SpoolError(Exception):
    """The spool could not do what it was asked to, now."""

    retry_after_s = RETRY_AFTER_S
    """When another try may succeed."""


class SpoolFullError(SpoolError):
    """There is no room: the spool's capacity, the disk's, or more waits for a slow disk than memory should hold."""


class SpoolBrokenError(SpoolError):
    """The disk refused, or the spool is closed."""


class SpoolVersionError(Exception):
    """A segment of a version that this Millrace does not read. Nothing of its folder was touched."""

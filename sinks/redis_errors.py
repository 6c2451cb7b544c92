"""What Redis, and the way to it, say when something is wrong, as a sentence on the whole destination.

No event is ever to blame for it: profile.lua sees to single keys.
"""

import ssl

from redis import exceptions as errors

from millrace.sinks.sink import SinkDownError

_SHOWN = 200


def down(error: Exception, place: str) -> SinkDownError:
    """Return an error as what a person is told.

    Args:
        error: of redis-py, or an OSError.
        place: where Redis is, such as host:port; without a password.
    """
    if isinstance(error, errors.BusyLoadingError):
        return SinkDownError(f"Redis at {place} is loading its data", after_s=1.0)
    return SinkDownError(f"Redis at {place} {_says(error)}")


def is_configured_wrong(error: Exception) -> bool:
    """Say whether trying again is of no use: the password, the user's rights, the certificate."""
    wrong = isinstance(error, errors.AuthenticationError | errors.NoPermissionError)
    return wrong or isinstance(_cause(error), ssl.SSLCertVerificationError)


def _says(error: Exception) -> str:
    if isinstance(error, errors.OutOfMemoryError):
        return "is out of memory (maxmemory): give it more, or let profiles go with ttl_days"
    if isinstance(error, errors.ReadOnlyError):
        return "is a replica that takes no writes: name the primary in url"
    if isinstance(error, errors.TimeoutError | TimeoutError):
        return "does not answer in time"
    if isinstance(error, errors.ClusterError | errors.MovedError):
        return "is a node of a cluster, which this sink cannot use: name a Redis that stands alone in url"
    if isinstance(error, errors.AuthenticationError | errors.NoPermissionError):
        return f"refuses the user, or what it may do: {_text(error)}"
    if isinstance(error, errors.ResponseError):
        return f"refuses the profiles: {_text(error)}"
    if isinstance(error, errors.InvalidResponse):
        return "is not a Redis: what answers there speaks another protocol"
    if isinstance(error, errors.MaxConnectionsError) or "max number of clients" in str(error):
        return "has no connection left (maxclients)"
    return f"cannot be reached: {_why(_cause(error))}"


def _why(cause: BaseException) -> str:
    if isinstance(cause, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(cause, ssl.SSLError):
        return (
            f"TLS fails ({cause.verify_message if isinstance(cause, ssl.SSLCertVerificationError) else cause.reason})"
        )
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return "the connection was closed"


def _cause(error: BaseException) -> BaseException:
    """Return the error of the operating system behind one of redis-py."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__cause__ or found.__context__
    return found or error


def _text(error: Exception) -> str:
    return " ".join(str(error)[:_SHOWN].split()).rstrip(".")

"""What the broker refuses: a call, with Google's status code, or its own start, in one line for a person."""

import grpc


class Refused(Exception):  # noqa: N818  (an answer to a client, not a fault of ours)
    """A call that gets a gRPC status instead of a result."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class CannotStart(Exception):  # noqa: N818
    """The broker cannot run here; the text says why and what to do, in one line."""


def invalid(message: str) -> Refused:
    """INVALID_ARGUMENT: the request is wrong whatever the state of the broker."""
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> Refused:
    """NOT_FOUND: no such topic, subscription or snapshot."""
    return Refused(grpc.StatusCode.NOT_FOUND, message)


def exists(message: str) -> Refused:
    """ALREADY_EXISTS: the name is taken."""
    return Refused(grpc.StatusCode.ALREADY_EXISTS, message)


def precondition(message: str) -> Refused:
    """FAILED_PRECONDITION: right request, wrong moment."""
    return Refused(grpc.StatusCode.FAILED_PRECONDITION, message)


def unsupported(what: str) -> Refused:
    """UNIMPLEMENTED: Pub/Sub has it, this broker does not; said aloud rather than accepted and ignored."""
    return Refused(grpc.StatusCode.UNIMPLEMENTED, f"The Millrace broker does not support {what}.")

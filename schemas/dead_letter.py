"""Dead letters: events that could not go on, payload untouched, with stage, reason and message."""

import enum

import pyarrow as pa

from millrace.schemas import avro
from millrace.schemas.event import RECEIPT

MESSAGE_CHARACTERS = 1_024

SCHEMA: pa.Schema = avro.arrow_schema(avro.load("dead_letter"))

BATCH: pa.Schema = SCHEMA.append(RECEIPT)
"""What travels between stages."""


class Reason(enum.Enum):
    """Why an event could not go on. A closed set: metrics and alerts hang on it; details go into the message."""

    EMPTY = "empty"  # no bytes, or nothing but white space, or a batch without events
    NOT_GZIP = "not_gzip"  # content-encoding says gzip, the bytes do not
    UNKNOWN_ENCODING = "unknown_encoding"  # a content-encoding that is neither gzip nor identity
    TOO_LARGE = "too_large"  # past the size cap, as it came or while unpacking
    NOT_UTF8 = "not_utf8"
    NOT_JSON = "not_json"
    TOO_DEEP = "too_deep"  # nested past the depth limit
    FORBIDDEN_CHARACTER = "forbidden_character"  # NUL or a lone surrogate: no warehouse can hold it
    NUMBER_OUT_OF_RANGE = "number_out_of_range"  # no double can hold it
    NOT_AN_EVENT = "not_an_event"  # JSON, but a field has the wrong type or the type is unknown
    NO_USER = "no_user"  # neither userId nor anonymousId
    MESSAGE_ID_TOO_LONG = "message_id_too_long"  # found by the collector only
    TYPE_NOT_ALLOWED = "type_not_allowed"  # the source may not send such events; found by the collector only
    CONTRACT_VIOLATED = "contract_violated"  # by the tracking plan, where its policy says so; the message has the field
    TRANSFORM_FAILED = "transform_failed"  # a user's own transform raised, or returned what cannot be used
    OTHER = "other"  # the collector's reason, where it is none of these (a newer collector); the message names it


class Rejected(Exception):  # noqa: N818  it is an outcome, not a fault
    """One record cannot go on; carries the reason and a message for a person."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message[:MESSAGE_CHARACTERS]

"""What a transform or a sink of your own is made with; docs/transforms.md and docs/sinks/own.md show it."""

from millrace.sinks.blocking import BlockingSink
from millrace.sinks.sink import (
    DELIVERED,
    CannotOpenSinkError,
    Delivered,
    Delivery,
    Fault,
    Memory,
    Outcome,
    Rejected,
    Retry,
    Sink,
    SinkDownError,
)
from millrace.transforms.custom.declare import (
    BatchTransform,
    EventTransform,
    LookupTransform,
    UserTransform,
    on_batch,
    on_event,
    on_lookup,
)
from millrace.transforms.custom.event import Event

__all__ = [
    "DELIVERED",
    "BatchTransform",
    "BlockingSink",
    "CannotOpenSinkError",
    "Delivered",
    "Delivery",
    "Event",
    "EventTransform",
    "Fault",
    "LookupTransform",
    "Memory",
    "Outcome",
    "Rejected",
    "Retry",
    "Sink",
    "SinkDownError",
    "UserTransform",
    "on_batch",
    "on_event",
    "on_lookup",
]

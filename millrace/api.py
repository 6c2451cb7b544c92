"""What a transform of your own is made with; docs/transforms.md shows it."""

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
    "BatchTransform",
    "Event",
    "EventTransform",
    "LookupTransform",
    "UserTransform",
    "on_batch",
    "on_event",
    "on_lookup",
]

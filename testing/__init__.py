"""The test kit for transforms and sinks of your own: builders, runs, property checks, and a pytest plugin.

    from millrace.testing import check_properties, check_sink, run_transform, track

Nothing of the job imports it. What it offers is loaded when it is first asked for: pytest loads this package for every
project that has Millrace installed.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from millrace.testing.builders import START, WireEvent, alias, batches_of, group, identify, page, screen, track
    from millrace.testing.deliveries import DictMemory, deliveries_of, delivery_of
    from millrace.testing.properties import PropertyError, Report, check_properties
    from millrace.testing.run import Result, run_transform
    from millrace.testing.sinks import SinkError, SinkReport, check_sink

__all__ = [
    "START",
    "DictMemory",
    "PropertyError",
    "Report",
    "Result",
    "SinkError",
    "SinkReport",
    "WireEvent",
    "alias",
    "batches_of",
    "check_properties",
    "check_sink",
    "deliveries_of",
    "delivery_of",
    "group",
    "identify",
    "page",
    "run_transform",
    "screen",
    "track",
]

_OF = {
    "properties": ("PropertyError", "Report", "check_properties"),
    "run": ("Result", "run_transform"),
    "deliveries": ("DictMemory", "deliveries_of", "delivery_of"),
    "sinks": ("SinkError", "SinkReport", "check_sink"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = next((module for module, names in _OF.items() if name in names), "builders")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)

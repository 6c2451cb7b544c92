"""Delivery in a local run: `millrace deliver` beside the job, where `millrace.yaml` has routes."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from millrace.collector.sources import FILE
from millrace.config.fanout import load_fanout
from millrace.delivery.status import LaneView, NoLaneError, look
from millrace.local import children
from millrace.local.parts import Part, Parts
from millrace.local.pubsub import TOPIC

_DRAIN_S = 30.0
_GRACE_S = _DRAIN_S + 60.0
STATE = "delivery"


@contextlib.contextmanager
def delivery(data: Path, parts: Parts, say: Callable[[str], None]) -> Iterator[None]:
    """Deliver while the caller goes on; at the end what is in the archive still goes out, for half a minute at most.

    Raises:
        FanoutError: the sections have mistakes.
    """
    lanes = load_fanout(str(data / FILE)).lanes
    if not lanes:
        yield
        return
    arguments = [f"--config={data / FILE}", f"--archive={data / 'archive'}", f"--state={data / STATE}"]
    arguments += [f"--topic={TOPIC}", "--from_start", f"--drain_s={_DRAIN_S:g}", "--quiet"]
    process = children.start("millrace.delivery.run", arguments, os.environ)
    with parts.running(Part("delivery", process), _GRACE_S):
        names = ", ".join(lane.name for lane in lanes)
        say(f"Delivering to {names}; `millrace sinks --state {data / STATE}` shows how it goes.")
        yield


def delivered(data: Path) -> str:
    """Say in a few lines what was delivered; nothing where there are no sinks."""
    try:
        views = look(data / STATE)
    except NoLaneError:
        return ""
    return "\n".join(map(_line, views))


def _line(view: LaneView) -> str:
    routed, waiting = view.total("routed"), view.waiting
    parts = [f"delivered {view.total('delivered'):,}"]
    parts += [f"{name} {view.total(name):,}" for name in ("dead", "skipped", "parked") if view.total(name)]
    if waiting:
        parts.append(f"waiting {waiting:,}")
    return f"Sink {view.name}: routed {routed:,} = {' + '.join(parts)}."

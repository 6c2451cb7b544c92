"""Sinks: what each has to keep, whatever its destination is: it is opened, given events in many forms, and closed."""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

from millrace.sinks.sink import Sink
from millrace.testing.sink_checks import CHECKS
from millrace.testing.sink_run import Run, SinkError

__all__ = ["SinkError", "SinkReport", "check_sink"]


class SinkReport(NamedTuple):
    """What was found of a sink that keeps everything."""

    events_per_s: float
    """Delivered in parts of 500 (or as many as it takes), as many at once as it takes."""
    cpu_us_per_event: float
    """Of this process."""
    checked: tuple[str, ...]


def check_sink(
    make_sink: Callable[[], Sink],
    *,
    read: Callable[[], Sequence[str]] | None = None,
    prefix: str = "",
    but: Sequence[str] = (),
) -> SinkReport:
    """Check that a sink keeps what every sink has to, against its real destination.

    | property | what has to hold |
    | --- | --- |
    | made | it can be made twice, and is the same; it shows no state |
    | opens | open and close, twice over; close without open; open again without close, as after SinkDownError |
    | delivers | an outcome for each row, delivered, in their users' order |
    | nothing | a delivery without rows has no outcomes, and fails nothing |
    | values | nulls, empty and hostile texts, extremes of numbers: delivered or rejected, and no exception |
    | columns | another route's columns, fewer and in another order, are delivered, too: all that check_columns allows |
    | targets | it looks at a delivery's target only where it has a check_target: else routes may name none |
    | redelivers | events that are delivered again, in other company, are delivered; now, and by the next process |
    | cancelled | a delivery that is cancelled at any moment stands in the way of nothing; its events can be resent |
    | together | as many deliveries at once as max_in_flight says |

    After each, no task of it may go on, and nothing may be warned of.

    Args:
        make_sink: makes the sink; called many times.
        read: returns the message_ids that the destination has, in its order: with it is checked that what was said to
            be delivered is there, in each user's order, and once only where the sink says `keeps_ids`.
        prefix: of the message_ids.
        but: properties that it need not have.

    Raises:
        SinkError: it lacks some.
    """
    found: list[str] = []
    run = Run(make_sink, read, prefix)
    names = [name for name in CHECKS if name not in but]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in names:
            found += [f"{name}: {problem}" for problem in run.check(CHECKS[name])]
        if found:
            raise SinkError("\n".join(found))
        return SinkReport(*run.cost(), tuple(names))

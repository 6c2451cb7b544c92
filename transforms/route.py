"""Route: which events go to which sink, and as what."""

import dataclasses

from millrace.config.expressions import Expression


@dataclasses.dataclass(frozen=True)
class Route:
    """A way from the events to a sink. Of the routes to one sink, an event takes the first that it fits.

    Attributes:
        name: of this route; the sink's where it has none of its own.
        to: the sink's name.
        when: which events; None: all.
        columns: (column, its name at the sink), in order; empty: every column, as it is called.
        sample: the part of the users (or events) that takes it, from above 0 to 1.
        sample_by: user or event: by whose hash the part is chosen.
        rate: the most events a second; the rest waits; None: no bound.
        is_ordered: each user's true order, from the archive; else as they come, from the subscription.
        target: a topic, a table, a path ... where the sink has several.
        consent: the categories that an event's user must not have denied.
        strategy: `and`: all of them are needed; `or`: one is enough (transforms.consent.blocked).
    """

    name: str
    to: str
    when: Expression | None = None
    columns: tuple[tuple[str, str], ...] = ()
    sample: float = 1.0
    sample_by: str = "user"
    rate: float | None = None
    is_ordered: bool = True
    target: str = ""
    consent: tuple[str, ...] = ()
    strategy: str = "and"

"""Make a sink of its settings."""

from typing import Any

from millrace.config.arguments import converted
from millrace.delivery.settings import SinkSettings
from millrace.sinks.sink import Sink
from millrace.transforms.custom.find import NotFoundError, find

BUILT_IN = {
    "console": "millrace.sinks.console:Console",
    "files": "millrace.sinks.files:Files",
    "webhook": "millrace.sinks.webhook:Webhook",
    "pubsub": "millrace.sinks.pubsub:PubSub",
    "kafka": "millrace.sinks.kafka:Kafka",
    "postgres": "millrace.sinks.postgres:Postgres",
    "redis": "millrace.sinks.redis:Redis",
    "bigquery": "millrace.sinks.bigquery:BigQuery",
}
"""By the name in `use`; imported only when asked for: each has a client library of its own."""


class NoSinkError(Exception):
    """There is no such sink, or it refuses its settings; one sentence that says what to do."""


def sink_class(use: str) -> type[Sink]:
    """Return the class that `use` names: a built-in sink, or `module:Name`.

    Raises:
        NoSinkError: there is none, or it is no sink.
    """
    if use not in BUILT_IN and ":" not in use:
        raise NoSinkError(f"there is no sink {use!r}; there are: {', '.join(BUILT_IN)}, or your own, as module:Name")
    try:
        found: Any = find(BUILT_IN.get(use, use))
    except NotFoundError as error:
        raise NoSinkError(str(error)) from error
    if not (isinstance(found, type) and issubclass(found, Sink)):
        raise NoSinkError(f"{use} is no sink; derive a class from millrace.sinks.sink.Sink")
    return found


def make_sink(settings: SinkSettings) -> Sink:
    """Return a sink, not opened, with what its `with` gives, each value converted to the argument's type.

    Raises:
        NoSinkError: there is no such class, or it refuses its settings.
    """
    target = sink_class(settings.use)
    try:
        return target(**{name: converted(target, name, value) for name, value in settings.given.items()})
    except ValueError as error:
        raise NoSinkError(f"{target.__name__} refuses its settings: {error}") from error
    except Exception as error:
        raise NoSinkError(f"{target.__name__} refuses its settings: {type(error).__name__}: {error}") from error

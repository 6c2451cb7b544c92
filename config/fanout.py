"""The sections `sinks:` and `routes:` of `millrace.yaml`: where events go, and which; docs/sinks.md describes them."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import yaml

from millrace.config.arguments import read_arguments
from millrace.config.columns import own_columns
from millrace.config.routes import read_routes
from millrace.config.yaml_page import MistakesError, Page, shown, text_of
from millrace.delivery.make import NoSinkError, make_sink, sink_class
from millrace.delivery.retry import RetryPolicy
from millrace.delivery.settings import Fanout, SinkSettings
from millrace.sinks.sink import Sink

SINK = ("use", "with", "retry", "max_events", "max_in_flight", "deadline", "hot_user_events", "max_waiting")
RETRY = ("first", "longest", "tries", "for")

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_TAKEN = ("all",)
"""`All` in an event's integrations means every sink; `millrace sinks retry all` every event."""
_MOST_S = 30 * 86_400


class FanoutError(MistakesError):
    """The sections have mistakes."""


def load_fanout(path: str) -> Fanout:
    """Read a file; the empty path means no file: no sink. Imports the sinks' classes, and makes each once.

    Raises:
        FanoutError: the file cannot be read or has mistakes: all of them, each with its line.
    """
    if not path:
        return Fanout()
    return read_fanout(text_of(path, FanoutError), path)


def read_fanout(text: str, path: str) -> Fanout:
    """Read the two sections of a file's text, and of `transforms:` which columns they add; see load_fanout.

    Raises:
        FanoutError: they have mistakes.
    """
    page = Page(text)
    sections: Mapping[str, yaml.Node] = {}
    if page.root is not None:
        sections = {name.value: value for name, value in page.pairs(page.root, "the file")}
    nodes = _named_sinks(page, sections.get("sinks"))
    made: dict[str, Sink | None] = dict.fromkeys(nodes)
    sinks = [_sink(page, name, node, made) for name, node in nodes.items()]
    routes = read_routes(page, sections.get("routes"), made, own_columns(page, sections.get("transforms")))
    _consent_is_read(page, sections)
    if page.mistakes:
        raise FanoutError(path, page.mistakes)
    return Fanout(tuple(sink for sink in sinks if sink is not None), routes)


def _consent_is_read(page: Page, sections: Mapping[str, yaml.Node]) -> None:
    """Note routes that need consent where nothing reads it from the events: they would send everything."""
    if "consent" in _members(sections.get("privacy")):
        return
    routes = sections.get("routes")
    for item in routes.value if isinstance(routes, yaml.SequenceNode) else ():
        if "consent" in (of := _members(item)):
            page.wrong(
                of["consent"],
                "routes: consent: nothing reads what users have denied, so this would hold back no event; add "
                "`privacy: {consent: {}}`",
            )


def _members(node: yaml.Node | None) -> dict[str, yaml.Node]:
    return {name.value: value for name, value in node.value} if isinstance(node, yaml.MappingNode) else {}


def unused(fanout: Fanout) -> Sequence[str]:
    """Return the names of sinks that no route leads to."""
    there = {route.to for route in fanout.routes}
    return [sink.name for sink in fanout.sinks if sink.name not in there]


def _named_sinks(page: Page, node: yaml.Node | None) -> dict[str, yaml.Node]:
    found: dict[str, yaml.Node] = {}
    for word, value in () if node is None else page.pairs(node, "sinks"):
        if not _NAME.fullmatch(word.value):
            page.wrong(word, f"sinks: {shown(word)} is no name; take a-z, 0-9, _ and -, and a letter first")
        elif word.value in _TAKEN:
            page.wrong(word, f"sinks: {word.value} means every sink; take another name")
        found[word.value] = value
    return found


def _sink(page: Page, name: str, node: yaml.Node, made: dict[str, Sink | None]) -> SinkSettings | None:
    of = page.members(node, name, SINK)
    use = page.text(of.get("use"), f"{name}: use")
    if "use" not in of and isinstance(node, yaml.MappingNode):
        page.wrong(node, f"{name}: use is missing; write a built-in sink's name, or module:Name of your own")
    settings = SinkSettings(
        name=name,
        use=use or "",
        retry=_retry(page, of.get("retry"), f"{name}: retry"),
        max_events=page.whole(of.get("max_events"), f"{name}: max_events", 100_000),
        max_in_flight=page.whole(of.get("max_in_flight"), f"{name}: max_in_flight", 10_000),
        deadline_s=page.duration(of.get("deadline"), f"{name}: deadline", 3_600) or SinkSettings.deadline_s,
        hot_user_events=page.whole(of.get("hot_user_events"), f"{name}: hot_user_events", 100_000_000)
        or SinkSettings.hot_user_events,
        max_waiting=page.whole(of.get("max_waiting"), f"{name}: max_waiting", 10_000_000) or SinkSettings.max_waiting,
    )
    return None if use is None else _with(page, settings, of, node, made)


def _with(
    page: Page, settings: SinkSettings, of: Mapping[str, yaml.Node], entry: yaml.Node, made: dict[str, Sink | None]
) -> SinkSettings:
    """Add what `with` gives, and make the sink once to see that it takes it; it is kept in `made`."""
    given = of.get("with")
    try:
        target = sink_class(settings.use)
    except NoSinkError as error:
        page.wrong(of["use"], f"{settings.name}: use: {error}")
        return settings
    values, fits = read_arguments(page, given, entry, settings.name, target)
    settings = dataclasses.replace(settings, given=values)
    if fits:
        try:
            made[settings.name] = make_sink(settings)
        except NoSinkError as error:
            page.wrong(_blamed(given, str(error)) or given or entry, f"{settings.name}: with: {error}")
    return settings


def _blamed(node: yaml.Node | None, text: str) -> yaml.Node | None:
    """Return the argument that a sentence names; None where it names none of those given."""
    for word, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if re.search(rf"\b{re.escape(word.value)}\b", text):
            found: yaml.Node = word
            return found
    return None


def _retry(page: Page, node: yaml.Node | None, where: str) -> RetryPolicy:
    policy = RetryPolicy()
    if node is None:
        return policy
    of = page.members(node, where, RETRY)
    first = page.duration(of.get("first"), f"{where}: first", _MOST_S)
    longest = page.duration(of.get("longest"), f"{where}: longest", _MOST_S)
    if longest is not None and longest < (first or policy.first_s):
        at_least = f"first, {first or policy.first_s:g} s"
        page.wrong(of["longest"], f"{where}: longest is shorter than {at_least}; make it at least that")
        longest = None
    return RetryPolicy(
        first_s=first or policy.first_s,
        longest_s=longest or max(policy.longest_s, first or 0.0),
        min_tries=page.whole(of.get("tries"), f"{where}: tries", 1_000_000) or policy.min_tries,
        min_s=page.duration(of.get("for"), f"{where}: for", _MOST_S) or policy.min_s,
    )

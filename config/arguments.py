"""Arguments: what `with:` gives to a class or function, checked against its signature and type hints."""

import inspect
import typing
from collections.abc import Mapping
from typing import Any

import msgspec
import yaml

from millrace.config.yaml_page import Page


def read_arguments(
    page: Page, node: yaml.Node | None, entry: yaml.Node, name: str, target: Any
) -> tuple[dict[str, Any], bool]:
    """Read a `with`, as YAML has its values; return it, and whether it fits, as far as can be told without a call.

    Args:
        page: where mistakes are noted.
        node: the `with`; None: there is none.
        entry: what it is part of.
        name: of the entry, for messages.
        target: what takes it: a class, or a function, whose first argument is not among the settings.
    """
    given: dict[str, tuple[yaml.Node, Any]] = {}
    before = len(page.mistakes)
    if node is not None:
        for word, value in page.pairs(node, f"{name}: with"):
            given[word.value] = (word, yaml.SafeLoader("").construct_document(value))
    settings = {key: value for key, (_, value) in given.items()}
    taken = arguments_of(target)
    if taken is None:
        return settings, len(page.mistakes) == before
    any_name = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values())
    for key, (at, value) in given.items():
        parameter = taken.get(key)
        if parameter is None or parameter.kind is inspect.Parameter.VAR_KEYWORD:
            if not any_name:
                there = ", ".join(taken) or "none"
                page.wrong(at, f"{name}: with: {key} is not a setting of {target.__name__}; there are: {there}")
            continue
        try:
            converted(target, key, value)
        except msgspec.ValidationError as error:
            page.wrong(at, f"{name}: with: {key}: {error}; {target.__name__} takes {_shown(parameter)}")
    for key, parameter in taken.items():
        needed = parameter.default is inspect.Parameter.empty and parameter.kind is not inspect.Parameter.VAR_KEYWORD
        if needed and key not in given:
            page.wrong(node or entry, f"{name}: with: {key} is missing, which {target.__name__} needs; add it")
    return settings, len(page.mistakes) == before


def converted(target: Any, name: str, value: Any) -> Any:
    """Return a value as an argument's type hint has it: a list as a tuple, a mapping as a dataclass.

    A value whose hint says nothing, or only the target's own code can check it, is left as it is.

    Raises:
        msgspec.ValidationError: it does not fit.
    """
    try:
        return msgspec.convert(value, _hint(target, name))
    except msgspec.ValidationError:
        raise
    except TypeError:
        return value


def arguments_of(target: Any) -> Mapping[str, inspect.Parameter] | None:
    """Return the settings that a class or function takes; None where that cannot be told."""
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        return None
    if not inspect.isclass(target):
        parameters = parameters[1:]  # the event, the batch or the key
    return {each.name: each for each in parameters if each.kind is not inspect.Parameter.VAR_POSITIONAL}


def _hint(target: Any, name: str) -> Any:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function).get(name, Any)
    except Exception:  # noqa: BLE001  names that are there for type checkers only
        return Any


def _shown(parameter: inspect.Parameter) -> str:
    return str(parameter).partition(" = ")[0].partition("=")[0]

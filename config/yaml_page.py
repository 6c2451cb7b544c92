"""Read a YAML file by hand: every value with its line, every mistake collected, not only the first."""

import datetime as dt
import difflib
import math
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

_SHOWN_CHARACTERS = 60
_UNITS_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION = re.compile(rf"([0-9][0-9_]*(?:\.[0-9]+)?) ?({'|'.join(_UNITS_S)})")


class Mistake(NamedTuple):
    """One thing that is wrong in a file."""

    line: int | None
    """From 1; None: the file as a whole."""
    text: str
    """What is wrong and what to do."""


class MistakesError(Exception):
    """A file has mistakes. Its text has a line for each: `FILE:LINE: what is wrong; what to do`."""

    def __init__(self, path: str, mistakes: Sequence[Mistake]) -> None:
        self.path = path
        self.mistakes = tuple(sorted(mistakes, key=lambda mistake: mistake.line or 0))
        super().__init__(
            "\n".join(f"{path}:{line}: {text}" if line else f"{path}: {text}" for line, text in self.mistakes)
        )


def text_of(path: str, mistakes: type[MistakesError]) -> str:
    """Return a file's text.

    Raises:
        MistakesError: of the type given: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise mistakes(path, [Mistake(None, f"cannot be read: {why}")]) from error


class Page:
    """One YAML text, and the mistakes found so far.

    Its readers give what a node holds, or None after noting a mistake. They work on nodes and not on the values that
    YAML makes of them: only nodes know their line, and only so `01:30` or `no` cannot become something else unnoticed.
    """

    def __init__(self, text: str) -> None:
        self.mistakes: list[Mistake] = []
        self.root: yaml.Node | None = None
        """None: empty, or no YAML (then there is a mistake)."""
        try:
            self.root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self.mistakes.append(
                Mistake(
                    mark.line + 1 if mark else None,
                    f"not YAML: {', '.join(filter(None, (error.context, error.problem)))}",
                )
            )
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            self.mistakes.append(Mistake(line, f"not YAML: the character U+{error.character:04X} is not allowed"))
        except RecursionError:
            self.mistakes.append(Mistake(None, "nested too deeply"))

    def wrong(self, node: yaml.Node, text: str) -> None:
        """Note a mistake where a node begins."""
        self.mistakes.append(Mistake(line_of(node), text))

    def pairs(
        self, node: yaml.Node, where: str, known: Collection[str] | None = None
    ) -> Sequence[tuple[yaml.ScalarNode, yaml.Node]]:
        """Read a mapping as pairs; known: the names there may be, None: any. What is wrong is left out."""
        if not isinstance(node, yaml.MappingNode):
            self.wrong(node, f"{where}: has to be `name: value` lines, not {shown(node)}")
            return ()
        found: dict[str, tuple[yaml.ScalarNode, yaml.Node]] = {}
        for name, value in node.value:
            if not isinstance(name, yaml.ScalarNode):
                self.wrong(name, f"{where}: a name has to be a plain word, not {shown(name)}")
            elif known is not None and name.value not in known:
                self.wrong(name, f"{where}: {shown(name)} is not known here; {meant(name.value, known)}")
            elif name.value in found:
                line = line_of(found[name.value][0])
                self.wrong(name, f"{where}: {shown(name)} is there already, at line {line}; keep one")
            else:
                found[name.value] = (name, value)
        return tuple(found.values())

    def members(self, node: yaml.Node, where: str, known: Collection[str]) -> dict[str, yaml.Node]:
        """Read a mapping by name; see pairs."""
        return {name.value: value for name, value in self.pairs(node, where, known)}

    def items(self, node: yaml.Node | None, where: str) -> Sequence[yaml.Node]:
        """Read a list; None: empty."""
        if node is None:
            return ()
        if not isinstance(node, yaml.SequenceNode):
            self.wrong(node, f"{where}: has to be a list, such as [one, two], not {shown(node)}")
            return ()
        items: Sequence[yaml.Node] = node.value
        return items

    def text(self, node: yaml.Node | None, where: str) -> str | None:
        """Read a text that is more than white space; that around it does not count."""
        if node is None:
            return None
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":str") and node.value.strip():
            return str(node.value).strip()  # a folded text may end with a new line
        self.wrong(node, f"{where}: has to be a text; put {shown(node)} in quotes if it is meant so")
        return None

    def choice(self, node: yaml.Node | None, where: str, choices: Collection[str]) -> str | None:
        """Read one of a few words."""
        if node is None:
            return None
        if isinstance(node, yaml.ScalarNode) and node.value in choices:
            return str(node.value)
        word = node.value if isinstance(node, yaml.ScalarNode) else ""
        self.wrong(node, f"{where}: {shown(node)} is not one of its values; {meant(word, choices)}")
        return None

    def number(self, node: yaml.Node | None, where: str, most: int) -> float | None:
        """Read a number > 0, up to most."""
        if node is None:
            return None
        if isinstance(node, yaml.ScalarNode) and re.fullmatch(r"[0-9][0-9_]*(\.[0-9]+)?", node.value):
            number = float(node.value.replace("_", ""))
            if 0 < number <= most and math.isfinite(number):
                return number
        self.wrong(node, f"{where}: has to be a number above 0, up to {most:,}, not {shown(node)}")
        return None

    def whole(self, node: yaml.Node | None, where: str, most: int) -> int | None:
        """Read a whole number from 1 to most."""
        if node is None:
            return None
        if isinstance(node, yaml.ScalarNode) and re.fullmatch(r"[0-9][0-9_]{0,15}", node.value):
            number = int(node.value.replace("_", ""))
            if 1 <= number <= most:
                return number
        self.wrong(node, f"{where}: has to be a whole number from 1 to {most:,}, not {shown(node)}")
        return None

    def duration(self, node: yaml.Node | None, where: str, most_s: int) -> float | None:
        """Read a duration above 0, up to most_s, such as 500ms, 1s, 5m, 1h or 2d; return it in seconds."""
        if node is None:
            return None
        found = _DURATION.fullmatch(node.value) if isinstance(node, yaml.ScalarNode) else None
        if found is not None:
            seconds = float(found[1].replace("_", "")) * _UNITS_S[found[2]]
            if 0 < seconds <= most_s:
                return seconds
        self.wrong(
            node, f"{where}: has to be a duration such as 500ms, 1s, 5m or 1h, up to {most_s:,} s, not {shown(node)}"
        )
        return None

    def moment(self, node: yaml.Node | None, where: str) -> dt.datetime | None:
        """Read a date, which means its first moment, or a date and time; UTC where there is no zone."""
        if node is None:
            return None
        if isinstance(node, yaml.ScalarNode):
            try:
                read = dt.datetime.fromisoformat(node.value)
                return read if read.tzinfo else read.replace(tzinfo=dt.UTC)
            except ValueError:
                pass
        self.wrong(
            node, f"{where}: has to be a date or time such as 2026-12-31 or 2026-12-31T18:00:00Z, not {shown(node)}"
        )
        return None


def line_of(node: yaml.Node) -> int:
    """Give the line, from 1, where a node begins."""
    return int(node.start_mark.line) + 1


def shown(node: yaml.Node) -> str:
    """Show what a node holds, cut to a length that fits into a message."""
    if isinstance(node, yaml.MappingNode):
        return "`name: value` lines"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if not node.value:
        return "nothing"
    return repr(node.value if len(node.value) <= _SHOWN_CHARACTERS else node.value[:_SHOWN_CHARACTERS] + "...")


def meant(word: str, choices: Collection[str]) -> str:
    """Say which of some words a person may have meant."""
    near = difflib.get_close_matches(word, choices, n=1)
    return f"did you mean {near[0]}?" if near else f"there are: {', '.join(choices)}"

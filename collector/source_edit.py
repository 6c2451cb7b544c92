"""Add to the text of `millrace.yaml` and leave every other byte of it as it was, comments and layout too."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from millrace.collector.keys import StoredKey
from millrace.collector.source import Source

_NEW_FILE = "# Who may send. `millrace check` finds mistakes; on SIGHUP a running collector reads it again.\n"


class EditError(Exception):
    """The file is written in a way that cannot be added to by machine; says what to write by hand."""


def with_source(text: str, source: Source) -> str:
    """Add a source as the last one: its kind, origins and keys; the rest has its defaults.

    Raises:
        EditError: `sources` is written as a flow, `{...}`.
    """
    lines = [f"{source.id}:", f"  kind: {source.kind.value}"]
    if source.origins:
        lines += ["  origins:", *(f'    - "{origin}"' for origin in source.origins.patterns)]
    lines += ["  keys:", *(f"    {line}" for key in source.keys for line in _key_lines(key))]
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is None:
        return _put(text if text.strip() else _NEW_FILE, None, "sources:\n" + _indented(lines, 2))
    sources = _member(root, "sources")
    if sources is None:
        return _put(text, _end_line(root), "sources:\n" + _indented(lines, 2))
    name_node, value = sources
    if isinstance(value, yaml.MappingNode) and not value.flow_style:
        return _put(text, _end_line(value), _indented(lines, value.start_mark.column))
    if isinstance(value, yaml.ScalarNode) and value.value == "":
        return _put(text, _end_line(name_node), _indented(lines, 2))
    raise EditError(f"`sources` is not written as lines; add by hand:\n\n{_indented(lines, 2)}")


def with_key(text: str, name: str, key: StoredKey) -> str:
    """Add a key to a source that is there.

    Raises:
        EditError: the source, or its keys, are written as a flow, `{...}` or `[...]`.
    """
    lines = _key_lines(key)
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    sources = _member(root, "sources") if root else None
    source = _member(sources[1], name) if sources else None
    if source is not None and isinstance(source[1], yaml.MappingNode) and not source[1].flow_style:
        keys = _member(source[1], "keys")
        if keys is None:
            column = source[1].start_mark.column
            return _put(text, _end_line(source[1]), _indented(["keys:", *(f"  {line}" for line in lines)], column))
        if isinstance(keys[1], yaml.SequenceNode) and not keys[1].flow_style:
            return _put(text, _end_line(keys[1]), _indented(lines, keys[1].start_mark.column))
    raise EditError(f"the keys of {name} are not written as lines; add by hand:\n\n{_indented(lines, 6)}")


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process edits files in this folder, and keep others waiting."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def replace(path: Path, text: str) -> None:
    """Put a text in a file's place, whole or not at all; the mode stays, a new file gets 0644.

    Raises:
        OSError: it was not possible; the file is as it was.
    """
    mode = path.stat().st_mode & 0o7777 if path.exists() else 0o644
    descriptor, made = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(made).replace(path)
    except BaseException:
        Path(made).unlink(missing_ok=True)
        raise


def _key_lines(key: StoredKey) -> Sequence[str]:
    return [f'- begins: "{key.begins}"', f'  sha256: "{key.sha256.hex()}"']


def _indented(lines: Sequence[str], columns: int) -> str:
    return "".join(" " * columns + line + "\n" for line in lines)


def _member(node: yaml.Node, name: str) -> tuple[yaml.ScalarNode, yaml.Node] | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    return next(((key, value) for key, value in pairs if key.value == name), None)


def _end_line(node: yaml.Node) -> int:
    """Give the line, from 0, after the last one of what a node holds.

    A block's own end mark is where the next thing begins, which is past the comments that belong to that.
    """
    if isinstance(node, yaml.MappingNode) and node.value and not node.flow_style:
        key, value = node.value[-1]
        return max(_end_line(key), _end_line(value))
    if isinstance(node, yaml.SequenceNode) and node.value and not node.flow_style:
        return max(_end_line(item) for item in node.value)
    return int(node.end_mark.line) + (node.end_mark.column > 0)


def _put(text: str, line: int | None, added: str) -> str:
    """Put lines before a line, from 0; None: at the end."""
    lines = text.splitlines(keepends=True)
    before, after = "".join(lines[:line]), "" if line is None else "".join(lines[line:])
    newline = "\r\n" if "\r\n" in text else "\n"
    gap = newline if before and not before.endswith(("\n", "\r")) else ""
    return before + gap + added.replace("\n", newline) + after

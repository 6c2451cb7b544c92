"""`millrace source`: add a source, give it a second key, list what there is. Prints a key once and keeps its hash."""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from millrace.collector.keys import Kind, StoredKey, new_key, stored
from millrace.collector.origins import Origins
from millrace.collector.snippets import collector_url, snippets
from millrace.collector.source import Source
from millrace.collector.source_edit import EditError, alone, replace, with_key, with_source
from millrace.collector.source_file import KEYS_AT_ONCE, SOURCE_ID, read
from millrace.collector.sources import FILE, Sources, SourcesError

URL = "http://localhost:8080"


def add_source(path: Path, name: str, kind: Kind, origins: Sequence[str] = (), key: str | None = None) -> str:
    """Add a source to a file, made where there is none, and give its write key; the file gets only the hash.

    Args:
        path: the file.
        name: the new source.
        kind: where its events come from.
        origins: of a browser source, at least one.
        key: one that SDKs in the field use already; None: a new one.

    Raises:
        ValueError: name, origins or key cannot be, or the name is taken; says why.
        SourcesError: the file has mistakes.
        EditError: the file cannot be added to by machine.
        OSError: the file cannot be read or written.
    """
    if not SOURCE_ID.fullmatch(name):
        raise ValueError(f"{name!r} is no name; take 1 to 64 letters, digits or . _ -")
    if (kind is Kind.BROWSER) != bool(origins):
        raise ValueError(
            "a browser source needs --origin, such as https://shop.example, or '*' for any page; others have none"
        )
    key = new_key(kind) if key is None else key
    new = Source(name, name, kind, (stored(key),), Origins(origins))

    def edit(text: str, present: Sequence[Source]) -> tuple[str, Sequence[Source]]:
        if any(source.id == name for source in present):
            raise ValueError(f"{name} is there already; `millrace source rotate {name}` gives it a second key")
        for source in present:
            if any(held.sha256 == new.keys[0].sha256 for held in source.keys):
                raise ValueError(f"the key is one of {source.id} already; each source has its own")
        return with_source(text, new), [*present, new]

    _edit(path, edit, may_be_new=True)
    return key


def rotate_key(path: Path, name: str) -> tuple[Kind, str]:
    """Give a source a second key beside the one it has; tells its kind and the key.

    Raises:
        ValueError: there is no such source, or it has two keys.
        SourcesError: the file has mistakes.
        EditError: the file cannot be added to by machine.
        OSError: the file cannot be read or written.
    """
    made: list[tuple[Kind, str]] = []

    def edit(text: str, present: Sequence[Source]) -> tuple[str, Sequence[Source]]:
        source = next((source for source in present if source.id == name), None)
        if source is None:
            raise ValueError(f"there is no source {name}; there are: {', '.join(source.id for source in present)}")
        if len(source.keys) >= KEYS_AT_ONCE:
            begins = " and ".join(f"{key.begins}..." for key in source.keys)
            raise ValueError(f"{name} has two keys, {begins}; remove the one that is no longer in use first")
        key = new_key(source.kind)
        made.append((source.kind, key))
        changed = dataclasses.replace(source, keys=(*source.keys, stored(key)))
        return with_key(text, name, stored(key)), [changed if other is source else other for other in present]

    _edit(path, edit, may_be_new=False)
    return made[0]


def listing(sources: Sources, now_us: int) -> str:
    """Show the sources, a line each; now_us, in µs since the epoch, says which keys have ended."""
    rows = [("source", "kind", "keys", "events/s", "ip", "origins")]
    for source in sources.all:
        rate = "any" if source.rate is None else f"{source.rate:g}"
        keys = ", ".join(_key_text(key, now_us) for key in source.keys) or "none"
        rows.append(
            (source.id, source.kind.value, keys, rate, source.ip_policy.value, " ".join(source.origins.patterns))
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `millrace source ...`; the exit code is 0, or 2 where nothing was changed, with the reason."""
    given = _parser().parse_args(arguments)
    try:
        done = _run(given, Path(given.file))
    except (SourcesError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except EditError as error:
        print(f"{given.file}: {error}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"millrace source {given.action}: {error}", file=sys.stderr)
        return 2
    print(done)
    return 0


def _run(given: argparse.Namespace, path: Path) -> str:
    if given.action == "list":
        return listing(Sources.load(path), time.time_ns() // 1_000)
    url = collector_url(given.url)
    if given.action == "rotate":
        kind, key = rotate_key(path, given.name)
        done = f"{given.name} has a second key in {path}; the first stays valid until it is removed."
    else:
        kind = Kind(given.kind) if given.kind else Kind.BROWSER if given.origin else Kind.SERVER
        known = sys.stdin.readline().strip() if given.key_from_stdin else None
        key = add_source(path, given.name, kind, given.origin, known)
        done = f"{given.name} ({kind.value}) is in {path}."
    return key if given.key_only else f"{done}\n{_instructions(kind, key, url)}"


def _instructions(kind: Kind, key: str, url: str) -> str:
    secret = (
        "a secret: never in a page or an app" if kind is Kind.SERVER else "public: it may stand in a page or an app"
    )
    parts = [f"Its write key, {secret}. It is shown this once; the file has only its hash:\n\n    {key}"]
    parts += [f"# {title}\n{code}" for title, code in snippets(kind, key, url)]
    return "\n\n".join([*parts, "A running collector takes it on SIGHUP."])


def _edit(path: Path, edit: Callable[[str, Sequence[Source]], tuple[str, Sequence[Source]]], may_be_new: bool) -> None:
    """Change a file as edit says, which is given its text and sources and tells those that it means to have then."""
    path = path.resolve()  # what a link points to is changed, the link stays
    with alone(path):
        text = path.read_bytes().decode() if path.exists() or not may_be_new else ""
        changed, meant = edit(text, read(text, str(path)).sources)
        if not _means(changed, meant):
            raise EditError("written in a way that cannot be added to by machine; copy the lines of a source by hand")
        replace(path, changed)


def _means(text: str, meant: Sequence[Source]) -> bool:
    try:
        return list(read(text, FILE).sources) == list(meant)
    except SourcesError:
        return False


def _key_text(key: StoredKey, now_us: int) -> str:
    if key.until is None:
        return f"{key.begins}..."
    return f"{key.begins}... {'until' if key.valid_at(now_us) else 'ended'} {key.until:%Y-%m-%d %H:%M %Z}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="millrace source", description="The sources of events, and their write keys.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="add|rotate|list")
    file = argparse.ArgumentParser(add_help=False)
    file.add_argument("--file", default=FILE, metavar="FILE", help=f"the file of sources (default: {FILE})")
    shown = argparse.ArgumentParser(add_help=False, parents=[file])
    shown.add_argument("name", metavar="NAME", help="goes with every event, as source_id")
    shown.add_argument(
        "--url", default=URL, help=f"the collector as clients reach it, for the snippets (default: {URL})"
    )
    shown.add_argument("--key-only", action="store_true", help="print the key and nothing else, for scripts")
    add = actions.add_parser("add", parents=[shown], help="add a source and print its write key")
    add.add_argument(
        "--kind",
        choices=[kind.value for kind in Kind],
        help="where its events come from; a server's key is a secret (default: browser with --origin, else server)",
    )
    add.add_argument(
        "--origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="a page that may send, such as https://shop.example or https://*.shop.example; may be repeated",
    )
    add.add_argument(
        "--key-from-stdin",
        action="store_true",
        help="take the key from the first line of standard input: one that SDKs in the field use already",
    )
    actions.add_parser("rotate", parents=[shown], help="give a source a second key and print it")
    actions.add_parser("list", parents=[file], help="show the sources and the beginnings of their keys")
    return parser


if __name__ == "__main__":
    sys.exit(main())

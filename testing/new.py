"""`millrace new transform NAME`: a transform that works, and its test, to start from."""

import argparse
import keyword
import re
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

KINDS = {
    "event": "a function of one event: change it, leave it out, or make several of it",
    "batch": "a function of a batch of columns: the fastest, for the price of one call",
    "user": "a class that sees each user's events in order, with a state of that user's own",
    "lookup": "a coroutine that asks another service about a key",
}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the two files; the exit code is 2 where they are there already, or the name is none."""
    parser = argparse.ArgumentParser(
        prog="millrace new",
        description="Write a transform of your own that works, and its test, into the current folder.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(["kinds:", *(f"  {kind:8} {text}" for kind, text in KINDS.items())]),
    )
    parser.add_argument("what", choices=["transform"], metavar="transform")
    parser.add_argument("name", metavar="NAME", help="of the module: a-z, 0-9 and _")
    parser.add_argument("--kind", choices=KINDS, default="event", help="default: %(default)s")
    given = parser.parse_args(arguments)
    name = given.name
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        print(f"millrace new: {name!r} is no name for a module: take a-z, 0-9 and _, a letter first.", file=sys.stderr)
        return 2
    if name in sys.stdlib_module_names:
        print(f"millrace new: {name} is a module of Python's own: take another name.", file=sys.stderr)
        return 2
    files = {Path(f"{name}.py"): f"{given.kind}.py.txt", Path(f"test_{name}.py"): f"test_{given.kind}.py.txt"}
    there = [str(path) for path in files if path.exists()]
    if there:
        print(f"millrace new: {' and '.join(there)} exists already: move it, or take another name.", file=sys.stderr)
        return 2
    title = "".join(part.capitalize() for part in name.split("_"))
    for path, template in files.items():
        text = resources.files("millrace.testing").joinpath("templates", template).read_text(encoding="utf-8")
        path.write_text(text.replace("NAME", name).replace("TITLE", title), encoding="utf-8")
    use = f"{name}:{title if given.kind in {'user', 'lookup'} else name}"
    print(
        f"Wrote {' and '.join(map(str, files))}. Try it: python -m pytest test_{name}.py\n"
        f"Then add it to millrace.yaml:\n\ntransforms:\n  - use: {use}\n\n"
        "docs/transforms.md says what more an entry can have, and how the module gets to workers."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

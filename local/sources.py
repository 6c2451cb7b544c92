"""The millrace.yaml of a local run: the shop's three sources, their write keys beside it, and what the job does."""

import json
import os
from pathlib import Path

from millrace.collector.add import add_source
from millrace.collector.keys import Kind, new_key
from millrace.collector.sources import FILE, Sources

WEB, APP, SERVER = "shop-web", "shop-app", "shop-server"

_KINDS = {WEB: Kind.BROWSER, APP: Kind.MOBILE, SERVER: Kind.SERVER}
_KEYS = "write_keys.json"
_HEAD = """\
# Made by ./run_local.sh; yours to change. The write keys are in write_keys.json, here are only their hashes.
# The sample traffic comes from many places by way of this machine, so its word on the client's address is believed.
trusted_proxies: [127.0.0.1]

# What the job does with events: docs/config.md has every section.
identity: {} # what a person does before and after a login is one sequence
enrich: [user_agent, url, referrer, campaign, locale, bots]
sessions: {} # ended by 30 minutes without an event
touch: {} # what brought each user, first and last

"""


def make_sources(folder: Path) -> dict[str, str]:
    """Return the write key of each source, made where they are not there yet.

    Raises:
        SourcesError: the file of sources has mistakes.
        ValueError: it has other keys than those that were kept.
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, kept = folder / FILE, folder / _KEYS
    if not kept.exists() and not path.exists():
        made = {name: new_key(kind) for name, kind in _KINDS.items()}
        _write_secretly(kept, json.dumps(made, indent=2) + "\n")
    keys: dict[str, str] = json.loads(kept.read_text(encoding="ascii")) if kept.exists() else {}
    if not path.exists():
        _write_file(path, keys)
    sources = Sources.load(path)
    for name in _KINDS:
        found = sources.by_key(keys.get(name, ""))
        if found is None or found.id != name:
            raise ValueError(f"{path}: {name} has not the key in {kept}; remove both files for new ones")
    return keys


def _write_file(path: Path, keys: dict[str, str]) -> None:
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.unlink(missing_ok=True)
    for name, kind in _KINDS.items():
        add_source(unfinished, name, kind, ["*"] if kind is Kind.BROWSER else [], keys[name])
    unfinished.write_text(_HEAD + unfinished.read_text(encoding="utf-8"), encoding="utf-8")
    unfinished.replace(path)


def _write_secretly(path: Path, text: str) -> None:
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(text)
    unfinished.replace(path)

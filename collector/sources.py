"""Sources: who may send. Read from `millrace.yaml` at the start and on SIGHUP; a bad file changes nothing."""

import dataclasses
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from millrace.collector.client_ip import Address, Network, client_ip
from millrace.collector.keys import BEGINS_CHARACTERS, LONGEST, Kind, StoredKey
from millrace.collector.source import Source, SourceLimits
from millrace.collector.source_file import SourcesError, read
from millrace.config.yaml_page import Mistake

__all__ = ["Kind", "Mistake", "Source", "SourceLimits", "Sources", "SourcesError"]

FILE = "millrace.yaml"


@dataclasses.dataclass(frozen=True)
class Sources:
    """Every source, and the proxies whose word on the client's address counts; a reload makes another."""

    all: tuple[Source, ...]
    trusted_proxies: tuple[Network, ...] = ()

    @classmethod
    def load(cls, path: Path | str) -> "Sources":
        """Read a file; touches nothing else, so whoever has sources keeps them when it raises.

        Raises:
            SourcesError: the file cannot be read or has mistakes: all of them, each with its line.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise SourcesError(str(path), [Mistake(None, f"cannot be read: {error}")]) from error
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, path: str = FILE) -> "Sources":
        """Read the text of a file; path is for the messages.

        Raises:
            SourcesError: it has mistakes: all of them, each with its line. To have no source is one.
        """
        contents = read(text, path)
        if not contents.sources:
            raise SourcesError(path, [Mistake(None, "no source is in it; `millrace source add NAME` adds one")])
        return cls(contents.sources, contents.trusted_proxies)

    def by_key(self, key: str, now_us: int | None = None) -> Source | None:
        """Find the source of a write key, or None: unknown, or past its `until`.

        Args:
            key: as the client sent it.
            now_us: µs since the epoch; None: the machine's clock, now.
        """
        if len(key) > LONGEST:
            return None
        now = time.time_ns() // 1_000 if now_us is None else now_us
        for stored, source in self._by_beginning.get(key[:BEGINS_CHARACTERS], ()):
            if stored.matches(key) and stored.valid_at(now):
                return source
        return None

    def allow_origin(self, origin: str) -> bool:
        """Say whether any source may be used from this origin: for a preflight, which carries no key."""
        return any(source.allows_origin(origin) for source in self.all)

    def client_ip(self, peer: str, forwarded_for: str) -> Address | None:
        """Find the client's address; see client_ip.client_ip."""
        return client_ip(peer, forwarded_for, self.trusted_proxies)

    @cached_property
    def _by_beginning(self) -> dict[str, Sequence[tuple[StoredKey, Source]]]:
        found: dict[str, list[tuple[StoredKey, Source]]] = {}
        for source in self.all:
            for stored in source.keys:
                found.setdefault(stored.begins, []).append((stored, source))
        return {begins: tuple(entries) for begins, entries in found.items()}

"""A wall clock that a test sets while a process runs, by libfaketime; the monotonic clock goes on as it is."""

from collections.abc import Mapping
from pathlib import Path

_PLACES = ("/usr/lib/*/faketime", "/usr/lib/faketime", "/usr/local/lib/faketime", "/usr/lib64/faketime")


def find_libfaketime() -> Path | None:
    """Return the library, None where it is not installed (Debian: apt-get install libfaketime)."""
    found = [path for place in _PLACES for path in Path("/").glob(f"{place[1:]}/libfaketimeMT.so.1")]
    return found[0] if found else None


class WallClock:
    """The clock of the processes that are started with its environment; `is_there` says whether it can be set."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "wall-clock"
        self._library = find_libfaketime()
        self.set(0)

    @property
    def is_there(self) -> bool:
        return self._library is not None

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process has to be started with."""
        if self._library is None:
            return {}
        return {
            "LD_PRELOAD": str(self._library), "FAKETIME_TIMESTAMP_FILE": str(self._file), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1",
        }  # fmt: skip

    def set(self, ahead_s: int) -> None:
        """Set it so many seconds ahead of the true time; behind it where negative."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{ahead_s:+d}\n")
        new.replace(self._file)

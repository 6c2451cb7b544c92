"""Golden files: what a test found the last time, kept beside it as JSON, and compared."""

import base64
import datetime as dt
import decimal
import difflib
import json
import re
from pathlib import Path
from typing import Any


class Golden:
    """Compares values with files of one folder, or writes them there.

    Args:
        folder: `golden/` beside the test.
        test: the test's name: the file's, too.
        update: write instead of comparing.
    """

    def __init__(self, folder: Path, test: str, *, update: bool) -> None:
        self._folder = folder
        self._test = re.sub(r"[^A-Za-z0-9_.-]+", "-", test).strip("-")
        self._update = update

    def __call__(self, value: Any, name: str = "") -> None:
        """Compare a value with its file.

        Args:
            value: what JSON can hold, times, dates, bytes and decimals.
            name: tells several of one test apart.

        Raises:
            AssertionError: they differ, or there is no file yet.
        """
        path = self._folder / f"{self._test}{f'.{name}' if name else ''}.json"
        text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, default=_plain) + "\n"
        if self._update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        if not path.exists():
            raise AssertionError(f"there is no {path}: look at what the test finds, then run it with --update-golden")
        before = path.read_text(encoding="utf-8")
        if text != before:
            lines = difflib.unified_diff(
                before.splitlines(), text.splitlines(), str(path), "found now", lineterm="", n=2
            )
            raise AssertionError("\n".join(["not as in the golden file (--update-golden writes it anew):", *lines]))


def _plain(value: Any) -> Any:
    if isinstance(value, dt.datetime | dt.date):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, decimal.Decimal):
        return str(value)
    raise TypeError(f"a golden file cannot hold {type(value).__name__}")

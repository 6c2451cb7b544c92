"""Where the examples are, and how a test imports one."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"


def example(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make one example's module importable, as it is in its own folder."""
    monkeypatch.syspath_prepend(FOLDER / name)
    monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.import_module(name)

"""User agent: the columns are what uap-core's own test cases say."""

import json
from pathlib import Path
from typing import Any

from millrace.transforms.enrich.user_agent import UserAgent
from tests.support.enriching import added

CASES: dict[str, list[list[str | None]]] = json.loads(
    Path(__file__).with_name("data").joinpath("uap_core.json").read_text()
)
OTHER = "Other"  # uap-core's word for what its rules do not know: a null here


def told(kind: str) -> list[tuple[Any, ...]]:
    return added(UserAgent(), [{"context_user_agent": case[0]} for case in CASES[kind]])


def known(value: str | None) -> str | None:
    return None if value == OTHER else value


def version(parts: list[str | None]) -> str | None:
    until = parts.index(None) if None in parts else len(parts)
    return ".".join(str(part) for part in parts[:until]) or None


def test_browsers():
    assert len(CASES["ua"]) == 292
    expected = [(case[0], known(case[1]), version(case[2:4])) for case in CASES["ua"]]
    # The cases tell no more than the first parts for sure: their fourth one is missing in some.
    found = [
        (case[0], row[0], ".".join(row[1].split(".")[: len(list(filter(None, case[2:4])))]) if row[1] else None)
        for case, row in zip(CASES["ua"], told("ua"), strict=True)
    ]
    assert found == expected


def test_systems():
    assert len(CASES["os"]) == 156
    expected = [(case[0], known(case[1]), version(case[2:])) for case in CASES["os"]]
    assert [(case[0], *row[2:4]) for case, row in zip(CASES["os"], told("os"), strict=True)] == expected


def test_devices():
    assert len(CASES["device"]) == 404
    expected = [(case[0], known(case[1]), *case[2:]) for case in CASES["device"]]
    assert [(case[0], *row[4:]) for case, row in zip(CASES["device"], told("device"), strict=True)] == expected


def test_what_is_no_user_agent_has_no_columns():
    strange = ["", " ", "-", "\u202e\U0001f600", "x" * 10_000, "Mozilla/5.0 " * 1_300, None]
    assert added(UserAgent(), [{"context_user_agent": text} for text in strange]) == [(None,) * 7] * len(strange)

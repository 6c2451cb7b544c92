"""All bodies of JSONTestSuite, as a property's value and as whole bodies (y: good JSON, n: bad, i: left open)."""

import json
from pathlib import Path

import pytest

from tests.support.asking import decoded, post
from tests.support.door import PATIENT, door, track

_FILE = Path(__file__).parent / "json_test_suite" / "cases.jsonl"
CASES = {name: text.encode("latin-1") for name, text in map(json.loads, _FILE.read_text("utf-8").splitlines())} | {
    "n_structure_100000_opening_arrays": b"[" * 100_000,  # too long to write down
    "n_structure_open_array_object": b'[{"":' * 50_000 + b"\n",
}
WITH_NUL = {"y_string_null_escape", "y_object_escaped_null_in_key"}  # good JSON, and refused: no text column holds it
GOOD = b'{"type":"track","userId":"v"}'


def batch_with(value: bytes) -> bytes:
    """Return a batch of a good event and one with this value."""
    return b'{"batch":[' + GOOD + b',{"type":"track","userId":"u","properties":{"a":' + value + b"}}]}"


def test_they_are_all_there() -> None:
    assert [sum(name.startswith(kind) for name in CASES) for kind in "yni"] == [95, 188, 35]


@pytest.mark.parametrize("name", CASES)
def test_a_value_is_kept_as_it_came_or_refused_and_nothing_is_in_between(name: str) -> None:
    outcome = post("/v1/batch", batch_with(CASES[name]))
    decoding = decoded(outcome)
    kept = dict(zip(decoding.batch["user_id"].to_pylist(), decoding.batch["properties"].to_pylist(), strict=True))
    good = name.startswith("y") and name not in WITH_NUL
    if good or (name.startswith("i") and "u" in kept):
        assert kept["u"].encode() == b'{"a":' + CASES[name] + b"}"
        assert (outcome.answer.status, set(kept), decoding.letters.num_rows) == (200, {"u", "v"}, 0)
    elif outcome.answer.status == 200:
        assert (set(kept), decoding.letters.num_rows) == ({"v"}, 1)
    else:  # no events can be told apart in such a body
        assert not name.startswith("y")
        assert (outcome.answer.status, kept, decoding.letters.num_rows) == (400, {}, 1)


def test_whole_bodies_over_one_connection_bring_no_event_and_no_bug() -> None:
    with door(PATIENT) as opened:
        requests = [track(body=body) for body in CASES.values()] + [track(body=batch_with(b)) for b in CASES.values()]
        replies = opened.send(*requests, track(b"Connection: close"))
        assert len(replies) == len(requests) + 1
        assert {reply.status for reply in replies[: len(CASES)]} <= {400, 413}
        assert {reply.status for reply in replies[len(CASES) :]} <= {200, 400}
        assert opened.count("failures_total") == 0

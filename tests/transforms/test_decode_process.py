"""Decode processes: they give what decoding here gives, whatever the bodies, and none is missed when it dies."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing import test_pipeline
from apache_beam.testing.util import assert_that
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millrace.schemas.envelope import Envelope
from millrace.transforms.decode import DecodeEnvelopes, decode_envelopes
from millrace.transforms.decode_process import DecodePool, DecodeProcess, ProcessGoneError, close_pools
from millrace.transforms.pending import Decoding, Limits
from tests.support.batches import NOON_US
from tests.support.pubsub import wait_until

LIMITS = Limits()


def envelope(body: bytes, number: int = 0, **attributes: str) -> Envelope:
    return Envelope(body, {"source_id": "shop", **attributes}, f"e{number}", NOON_US, NOON_US + number, number)


def event(number: int, **more: Any) -> dict[str, Any]:
    return {"type": "track", "event": "Viewed", "messageId": f"m{number}", "userId": f"u{number % 3}", **more}


def same(found: Decoding, envelopes: Sequence[Envelope]) -> bool:
    """Compare with what this process makes of them, but for the time of refusal."""
    expected = decode_envelopes(envelopes, NOON_US)
    letters = [each.drop_columns(["refused_at", "date"]) for each in (found.letters, expected.letters)]
    return (
        found.batch == expected.batch
        and letters[0] == letters[1]
        and found.counts.tolist() == expected.counts.tolist()
        and found.envelopes == expected.envelopes
    )


@pytest.fixture(scope="module")
def process() -> Iterator[DecodeProcess]:
    with contextlib.closing(DecodeProcess()) as started:
        yield started


bodies = st.one_of(
    st.binary(max_size=40),
    st.builds(lambda n, text: json.dumps(event(n, properties={"text": text})).encode(), st.integers(0, 9), st.text()),
    st.builds(lambda n: json.dumps({"batch": [event(each) for each in range(n)]}).encode(), st.integers(0, 5)),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(given=st.lists(bodies, max_size=6))
def test_any_bodies_become_what_they_become_here(process: DecodeProcess, given: list[bytes]):
    envelopes = [envelope(body, number) for number, body in enumerate(given)]
    assert same(process.decode(envelopes, LIMITS), envelopes)


def test_the_shared_memory_grows_with_what_is_sent_and_with_what_comes_back(process: DecodeProcess):
    large = [envelope(json.dumps(event(n, properties={"text": "x" * 700_000})).encode(), n) for n in range(8)]
    assert same(process.decode(large, LIMITS), large)
    # Few bytes there, many back: an empty object is a dead letter with its envelope's attributes.
    many = [envelope(b'{"batch":[' + b",".join([b"{}"] * 40_000) + b"]}", 1, note="y" * 100)]
    assert same(process.decode(many, LIMITS), many)
    small = [envelope(json.dumps(event(1)).encode())]
    assert same(process.decode(small, LIMITS), small)


def test_limits_are_those_of_the_request(process: DecodeProcess):
    body = json.dumps({"batch": [event(1), event(2)]}).encode()
    found = process.decode([envelope(body)], Limits(events=1))
    assert found.letters.column("reason").to_pylist() == ["too_large"]


def test_one_that_was_killed_says_so():
    process = DecodeProcess()
    os.kill(process.pid, signal.SIGKILL)
    process._process.wait()
    with contextlib.closing(process), pytest.raises(ProcessGoneError, match=f"decode process {process.pid} ended"):
        process.decode([envelope(b"{}")], LIMITS)


def test_a_killed_one_is_not_missed_and_another_takes_its_place():
    envelopes = [envelope(json.dumps(event(number)).encode(), number) for number in range(5)]
    with contextlib.closing(DecodePool(1)) as pool:
        assert same(pool.submit(envelopes, LIMITS).result(), envelopes)
        for _ in range(2):
            first = pool._idle.get()
            assert first is not None
            os.kill(first.pid, signal.SIGKILL)
            first._process.wait()
            pool._idle.put(first)
            assert same(pool.submit(envelopes, LIMITS).result(), envelopes)  # here
            assert same(pool.submit(envelopes, LIMITS).result(), envelopes)  # by another
            second = pool._idle.get()
            assert second is not None
            assert second.pid != first.pid
            pool._idle.put(second)


def test_where_none_can_live_no_more_are_started(monkeypatch: pytest.MonkeyPatch):
    started: list[DecodeProcess] = []

    def start() -> DecodeProcess:
        started.append(DecodeProcess())
        return started[-1]

    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr("millrace.transforms.decode_process.DecodeProcess", start)
    envelopes = [envelope(b"{}")]
    with contextlib.closing(DecodePool(1)) as pool:
        for _ in range(8):
            assert same(pool.submit(envelopes, LIMITS).result(), envelopes)
    assert len(started) == DecodePool.PATIENCE


def test_none_outlives_a_job_that_is_killed():
    code = "from millrace.transforms.decode_process import DecodeProcess\nimport time\np = DecodeProcess()\n"
    code += "print(p.pid, flush=True)\ntime.sleep(600)"
    job = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with job:
        assert job.stdout is not None
        pid = int(job.stdout.readline())
        job.kill()

    def is_gone() -> bool:
        status = Path(f"/proc/{pid}/stat")
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"

    wait_until(is_gone)


def test_the_stage_gives_the_same_with_processes_and_without():
    lists = [
        [envelope(json.dumps({"batch": [event(10 * n + m) for m in range(4)]}).encode(), 3 * k + n) for n in range(3)]
        for k in range(4)
    ] + [[envelope(b"no json", 99)], []]
    expected = decode_envelopes([each for envelopes in lists for each in envelopes], NOON_US)

    def check_batches(found: Sequence[Any]) -> None:
        rows = sorted((row for each in found for row in each.to_pylist()), key=lambda row: row["receipt"])
        assert rows == sorted(expected.batch.to_pylist(), key=lambda row: row["receipt"])

    def check_letters(found: Sequence[Any]) -> None:
        assert [row["payload"] for each in found for row in each.to_pylist()] == [b"no json"]

    try:
        with test_pipeline.TestPipeline() as pipeline:
            given = pipeline | beam.Create(lists).with_output_types(list[Envelope])
            doors = given | DecodeEnvelopes(processes=2)
            assert_that(doors.batches, check_batches, label="batches")
            assert_that(doors.dead_letters, check_letters, label="dead letters")
    finally:
        close_pools()

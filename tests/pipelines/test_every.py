"""Every: what runs beside the job, and ends with it."""

import threading

from millrace.pipelines.every import Every
from millrace.pipelines.progress import line
from tests.support.pubsub import wait_until


def test_it_calls_again_and_again_until_it_is_left():
    calls: list[bool] = []

    def note(over: threading.Event) -> None:
        calls.append(over.is_set())

    with Every(0.001, note, first_s=0):
        wait_until(lambda: len(calls) >= 5)
    after = len(calls)
    assert not any(calls[:-1])
    assert len(calls) == after


def test_a_long_call_learns_that_it_is_over():
    begun = threading.Event()

    def wait(over: threading.Event) -> None:
        begun.set()
        over.wait()

    with Every(60, wait, first_s=0):
        assert begun.wait(90)


def test_every_0_seconds_is_never():
    def fail(_: threading.Event) -> None:
        raise AssertionError("called")

    with Every(0, fail, first_s=0):
        assert "millrace-fail" not in [thread.name for thread in threading.enumerate()]


def test_a_progress_line_names_every_door():
    counts = {
        "decode/events_out": 1_200,
        "decode/dead_letters": 3,
        "order/events_out": 1_100,
        "archive/late": 7,
        "duplicates/rows": 12,
        "dead_letters/rows": 3,
        "dropped/rows": 2,
        "archive/rows": 1_000,
    }
    expected = "in 1,203  ordered 1,100  late 7  duplicate 12  dead 3  dropped 2  archived 1,000  lag 3.2 s"
    assert line(counts, 3.21) == expected

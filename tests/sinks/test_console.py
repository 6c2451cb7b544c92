"""The sink `console`."""

import asyncio
import json
import os
import subprocess
import sys

import pytest

from millrace.sinks.console import Console
from millrace.sinks.sink import DELIVERED
from millrace.testing import check_sink, deliveries_of, track


def test_it_keeps_what_every_sink_has_to(capfdbinary: pytest.CaptureFixture[bytes]):
    printed = []

    def read() -> list[str]:
        printed.append(capfdbinary.readouterr().out)
        return [json.loads(line)["message_id"] for line in b"".join(printed).splitlines()]

    check_sink(Console, read=read)


@pytest.mark.parametrize(("names_route", "start"), [(False, ""), (True, "crm\t")])
def test_each_event_is_a_line(capfdbinary: pytest.CaptureFixture[bytes], *, names_route: bool, start: str):
    events = [track("Order Completed", user="ann", at=n, properties={"n": n}) for n in range(2)]
    (given,) = deliveries_of(events, route="crm")
    assert asyncio.run(Console(names_route=names_route).deliver(given)) == [DELIVERED] * 2
    lines = capfdbinary.readouterr().out.decode().splitlines()
    assert [line.startswith(f"{start}{{") for line in lines] == [True] * 2
    rows = [json.loads(line.removeprefix(start)) for line in lines]
    assert [(row["message_id"], row["properties"]) for row in rows] == [("m1", {"n": 0}), ("m2", {"n": 1})]


def test_a_reader_that_went_away_puts_the_sink_down():
    code = (
        "import asyncio, sys; from millrace.sinks.console import Console; from millrace.testing import *\n"
        "(given,) = deliveries_of([track('x')])\n"
        "try: asyncio.run(Console().deliver(given))\n"
        "except Exception as error: print(type(error).__name__, error, file=sys.stderr)\n"
        "sys.stdout = None"
    )
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=150
    )
    os.close(writing)
    assert done.stderr.startswith("SinkDownError nobody reads standard output any more: start it again with a reader\n")

"""The real SDKs: what they were answered for is in the journal, what they could not send is noted as given up."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from millrace.collector.sources import FILE, Sources
from millrace.local.sources import SERVER, make_sources
from tests.support.scripted import scripted_collector


def until(condition: Callable[[], Any], timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {timeout_s} s"
        time.sleep(0.02)


def started(url: str, data: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "millrace.local.sdks", f"--url={url}", f"--data={data}"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ})


def journal(data: Path) -> Counter[tuple[str, str]]:
    with (data / "journal.csv").open() as file:
        return Counter((row["name"], row["answered"]) for row in csv.DictReader(file))


def test_what_both_sdks_were_answered_is_what_the_collector_kept(tmp_path: Path) -> None:
    make_sources(tmp_path)
    with scripted_collector(Sources.load(tmp_path / FILE)) as collector:
        collector.script = [503, "lost"]  # they try again by themselves
        with started(collector.url, tmp_path) as process:
            until(lambda: len(collector.outcomes) >= 8)
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=120)[1]
        assert process.returncode == 0, said
        rows = collector.decoded().batch.to_pylist()
    noted = journal(tmp_path)
    assert set(noted.values()) == {1}
    assert {name for name, answered in noted if answered == "1"} == {row["message_id"] for row in rows}
    assert {answered for _, answered in noted} == {"1"}
    assert said.splitlines()[-1] == f"The SDKs have ended: {len(noted):,} events answered."
    agents = {request.headers[b"user-agent"].decode().partition("/")[0] for request in collector.requests}
    assert agents == {"analytics-python"}
    libraries = {(row["context_library_name"], row["context_library_version"]) for row in rows}
    assert len(libraries) == 2  # one of each
    assert {row["source_id"] for row in rows} == {SERVER}
    assert not [row for row in rows if row["rest"] and "writeKey" in row["rest"]]


def test_what_a_refusing_collector_did_not_take_is_given_up(tmp_path: Path) -> None:
    make_sources(tmp_path)
    with scripted_collector(Sources.load(tmp_path / FILE)) as collector:
        collector.script = [401] * 100
        with started(collector.url, tmp_path) as process:
            until(lambda: len(collector.requests) >= 2)
            until(lambda: (tmp_path / "journal.csv").exists() and len(journal(tmp_path)) >= 2)
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=120)[1]
        assert process.returncode == 1, said
        assert collector.outcomes == []
    noted = journal(tmp_path)
    assert {answered for _, answered in noted} == {"0"}
    assert f"The SDKs have ended: 0 events answered, {len(noted):,} given up." in said

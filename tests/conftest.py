"""Fixtures that more than one folder of tests uses."""

import contextlib
import logging
import subprocess
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from millrace.local.doctor import find_google_emulator
from millrace.local.prism_binary import PrismNotFoundError, find_prism
from tests.support.node import UnavailableError, installed_packages
from tests.support.pubsub import Server, broker_process, google_emulator

# How long an example takes is up to what else the machine does: no test fails by it, and those that measure say so. A
# run of the whole suite draws the same examples as the one before; `--hypothesis-profile=search` looks for new ones.
_ANY_SPEED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("steady", _ANY_SPEED, derandomize=True)
settings.register_profile("search", _ANY_SPEED, derandomize=False, max_examples=1_000, print_blob=True)
settings.load_profile("steady")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fetch or build what takes minutes, once on a machine, before the time of the first test that needs it runs.

    What cannot be had is told by those tests.
    """
    if session.config.option.collectonly:
        return
    if any(item.get_closest_marker("slow") for item in session.items):  # most of them run the job
        with contextlib.suppress(PrismNotFoundError):
            find_prism(None, lambda _: None)
    if any(item.path.parent.name == "sdks" for item in session.items):
        with contextlib.suppress(UnavailableError, subprocess.TimeoutExpired):
            installed_packages()
    if any(item.path.name.startswith("test_kafka") for item in session.items):
        from tests.support.kafka import KafkaNotFoundError, kafka_jars

        with contextlib.suppress(KafkaNotFoundError, subprocess.TimeoutExpired):
            kafka_jars()


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """What a test sets up to log by is gone with it: its handlers write to a captured stream, which is closed then."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = [
        each for each in root.handlers if each in handlers or type(each).__module__ == "_pytest.logging"
    ]
    root.setLevel(level)


@pytest.fixture(scope="session")
def _servers() -> Iterator[dict[str, Server]]:
    """The servers that some test asked for, each started once."""
    with contextlib.ExitStack() as stack:
        started = _Servers(stack)
        yield started


class _Servers(dict[str, Server]):
    def __init__(self, stack: contextlib.ExitStack) -> None:
        super().__init__()
        self._stack = stack

    def __missing__(self, kind: str) -> Server:
        self[kind] = self._stack.enter_context(broker_process() if kind == "millrace" else google_emulator())
        return self[kind]


@pytest.fixture(params=["millrace", "google"])
def pubsub_server(
    request: pytest.FixtureRequest, _servers: dict[str, Server], monkeypatch: pytest.MonkeyPatch
) -> Server:
    """A Pub/Sub server, ours and then Google's emulator, shared by all tests: use a project of your own.

    Ordinary clients find it, since PUBSUB_EMULATOR_HOST is set while the test runs.
    """
    if request.param == "google" and find_google_emulator() is None:
        pytest.skip("Google's Pub/Sub emulator is not installed")
    server = _servers[request.param]
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
    return server

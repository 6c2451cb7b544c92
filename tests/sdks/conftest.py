"""The stand, started once for all tests of the SDKs; and what a machine may lack."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from playwright.sync_api import Browser

from millrace.collector.add import add_source
from millrace.collector.keys import Kind
from tests.sdks.stand import Stand
from tests.support.chromium import chromium
from tests.support.node import UnavailableError, installed_packages, node
from tests.support.pubsub import PubSub, broker_process
from tests.support.serving import serving


@pytest.fixture(scope="session")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    folder = tmp_path_factory.mktemp("sdks")
    sources = folder / "millrace.yaml"
    keys = {
        "server": add_source(sources, "server", Kind.SERVER),
        "web": add_source(sources, "web", Kind.BROWSER, origins=["*"]),
    }
    with broker_process() as broker, PubSub(broker.address) as pubsub:
        topic = pubsub.create_topic("events")
        subscription = pubsub.create_subscription(topic)
        with serving(folder, broker.address, topic, "--demo", "--workers=1", sources=sources) as collector:
            yield Stand(f"http://127.0.0.1:{collector.port}", keys, pubsub, subscription)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    try:
        with chromium() as running:
            yield running
    except UnavailableError as error:
        _unavailable(error)


@pytest.fixture(scope="session")
def node_packages() -> Path:
    """The node_modules of package.json."""
    try:
        node()
        return installed_packages()
    except UnavailableError as error:
        _unavailable(error)


def _unavailable(error: UnavailableError) -> NoReturn:
    """Skip what this machine cannot run; in CI that is a failure, since .ci/run installs all of it."""
    if os.environ.get("CI"):
        pytest.fail(str(error))
    pytest.skip(str(error))

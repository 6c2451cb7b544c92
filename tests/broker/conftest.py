"""The two ways in which broker tests reach a server: `pubsub` is ours, then Google's; `own` is ours alone."""

from collections.abc import Iterator

import pytest

from millrace.broker import Broker
from tests.support.pubsub import PubSub, Server


@pytest.fixture
def pubsub(pubsub_server: Server) -> Iterator[PubSub]:
    """Calls to a server, in a project that is new: the test runs on ours and on Google's emulator."""
    with PubSub(pubsub_server.address) as calls:
        yield calls


@pytest.fixture
def broker() -> Iterator[Broker]:
    """Our broker in this process, with nothing in it."""
    with Broker() as running:
        yield running


@pytest.fixture
def own(broker: Broker) -> Iterator[PubSub]:
    """Calls to our broker in this process: for what Google's emulator does not do, or not as the service does."""
    with PubSub(broker.address) as calls:
        yield calls

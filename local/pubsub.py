"""Pub/Sub for a local run: the embedded broker, or the one that the environment names; its topic and subscription."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from google.api_core import exceptions
from google.cloud import pubsub_v1

from millrace.local import children
from millrace.local.parts import CannotRunError, Part, Parts

TOPIC = "projects/millrace-local/topics/events"
SUBSCRIPTION = "projects/millrace-local/subscriptions/events-archive"
VARIABLE = "PUBSUB_EMULATOR_HOST"
BROKER = "broker"
"""The name of the part."""

_ACK_DEADLINE_S = 30
_READY_S = 20.0
_GRACE_S = 10.0


@contextlib.contextmanager
def pubsub(data: Path, parts: Parts, say: Callable[[str], None]) -> Iterator[None]:
    """Have a Pub/Sub with topic and subscription, named in the environment of this process.

    Raises:
        CannotRunError: it does not start, or does not answer.
    """
    given = os.environ.get(VARIABLE)
    if given:
        say(f"Using the Pub/Sub at {given} ({VARIABLE}).")
        _create_topic_and_subscription()
        yield
        return
    arguments = ["--port", "0", "--data", str(data / "broker")]
    process = children.start("millrace.broker.server", arguments, os.environ, subprocess.PIPE)
    with parts.running(Part(BROKER, process), _GRACE_S):
        assert process.stdout is not None
        ready = process.stdout.readline()
        if f"{VARIABLE}=" not in ready:
            raise CannotRunError("the broker did not start; its own message is above")
        say(ready.strip())
        os.environ[VARIABLE] = ready.rpartition("=")[2].strip()
        try:
            _create_topic_and_subscription()
            yield
        finally:
            del os.environ[VARIABLE]


def _create_topic_and_subscription() -> None:
    publisher, subscriber = pubsub_v1.PublisherClient(), pubsub_v1.SubscriberClient()
    try:
        with contextlib.suppress(exceptions.AlreadyExists):
            publisher.create_topic(request={"name": TOPIC}, timeout=_READY_S, retry=None)
        with contextlib.suppress(exceptions.AlreadyExists):
            wanted = {"name": SUBSCRIPTION, "topic": TOPIC, "ack_deadline_seconds": _ACK_DEADLINE_S}
            subscriber.create_subscription(request=wanted, timeout=_READY_S, retry=None)
    except (exceptions.GoogleAPICallError, exceptions.RetryError) as error:
        where = os.environ.get(VARIABLE)
        reason = str(error).partition(";")[0]
        raise CannotRunError(f"cannot create {TOPIC} at {where}: is Pub/Sub running there? ({reason})") from error
    finally:
        publisher.stop()
        publisher.transport.close()
        subscriber.close()

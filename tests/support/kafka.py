"""A real Kafka for tests, one node, from Maven Central's jars; and reading back what it was given.

with running_kafka(tmp_path) as kafka:
    kafka.create_topic("events")
    ... kafka.address ...
    kafka.kill(); kafka.start()
    kafka.records("events")

It needs a Java runtime and Maven (Debian: default-jre-headless, maven). The jars (45 MB) are fetched once, into the
folder where Millrace keeps Prism, too: `python -m tests.support.kafka` does that beforehand.
"""

import base64
import contextlib
import dataclasses
import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from millrace.local.prism_binary import cache_dir
from tests.support.pubsub import wait_until

VERSION = "4.1.2"
START_S = 60.0
_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>millrace</groupId><artifactId>kafka-for-tests</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies><dependency>
    <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version>
  </dependency></dependencies>
</project>
"""
_JAVA = ("java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")


class KafkaNotFoundError(Exception):
    """There is no Kafka to test with; the message says why, and what to do."""


def kafka_jars() -> Path:
    """Return the folder of Kafka's jars; fetch them where they are not there.

    Raises:
        KafkaNotFoundError: no Java, no Maven, or Maven could not fetch them.
    """
    if shutil.which("java") is None:
        raise KafkaNotFoundError("no Java runtime to run Kafka on (Debian: apt-get install default-jre-headless)")
    place = cache_dir() / f"kafka-{VERSION}"
    if place.is_dir():
        return place
    if shutil.which("mvn") is None:
        raise KafkaNotFoundError("no Maven to fetch Kafka with (Debian: apt-get install maven)")
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if place.is_dir():  # the process that we waited for has put it there
            return place
        with tempfile.TemporaryDirectory(dir=place.parent, prefix="making-") as work:
            Path(work, "pom.xml").write_text(_POM)
            jars = Path(work, "jars")
            command = ["mvn", "-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime"]
            command.append(f"-DoutputDirectory={jars}")
            made = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False, timeout=600)
            if made.returncode != 0:
                raise KafkaNotFoundError(f"Maven could not fetch Kafka {VERSION}: {(made.stdout + made.stderr)[-800:]}")
            jars.replace(place)
    return place


@dataclasses.dataclass(frozen=True)
class Read:
    """A record as it was read back."""

    partition: int
    offset: int
    key: bytes
    value: bytes
    headers: Mapping[str, bytes]

    @classmethod
    def of(cls, message: Any) -> "Read":
        assert message.error() is None, message.error()
        return cls(message.partition(), message.offset(), message.key(), message.value(), dict(message.headers() or []))


class Kafka:
    """A Kafka of one node: it may be stopped or killed, and started again with what it had, on the same port."""

    def __init__(self, folder: Path, password: str = "") -> None:
        """Lay it out.

        Args:
            folder: an empty one, for its settings, log and data.
            password: what the user `millrace` has to give (SASL PLAIN); empty: no user is asked for.
        """
        self._jars = kafka_jars()
        self._folder = folder
        port, controller = _free_ports(2)
        self.address = f"127.0.0.1:{port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._password = password
        self._settings = folder / "server.properties"
        folder.mkdir(parents=True, exist_ok=True)
        jaas = (
            "org.apache.kafka.common.security.plain.PlainLoginModule required "
            f'username="millrace" password="{password}" user_millrace="{password}";'
        )
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "listeners": f"CLIENTS://{self.address},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"CLIENTS://{self.address}",
            "listener.security.protocol.map": (
                f"CLIENTS:{'SASL_PLAINTEXT' if password else 'PLAINTEXT'},CONTROLLER:PLAINTEXT"
            ),
            "inter.broker.listener.name": "CLIENTS",
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller}",
            "log.dirs": str(folder / "data"),
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "auto.create.topics.enable": "false",
            "broker.heartbeat.interval.ms": "200",
            "broker.session.timeout.ms": "1000",  # or it is not let in again for 9 s after a kill
            "log.cleaner.enable": "false",
            **(
                {
                    "sasl.enabled.mechanisms": "PLAIN",
                    "sasl.mechanism.inter.broker.protocol": "PLAIN",
                    "listener.name.clients.plain.sasl.jaas.config": jaas,
                }
                if password
                else {}
            ),
        }
        self._settings.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        self._java("kafka.tools.StorageTool", "format", "--standalone", "-t", _cluster_id(), "-c", str(self._settings))

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self._folder / "kafka.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_JAVA, "-cp", f"{self._jars}/*", "kafka.Kafka", str(self._settings)], stdout=log, stderr=log
            )
        wait_until(self._answers, START_S, "Kafka answers")

    def stop(self) -> None:
        """End it as an operator does."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(60)

    def kill(self) -> None:
        """End it as kill -9 does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @property
    def client_settings(self) -> dict[str, Any]:
        """What a client of librdkafka's needs to get in."""
        found: dict[str, Any] = {"bootstrap.servers": self.address, "log_level": 2}
        if self._password:
            found |= {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN"}
            found |= {"sasl.username": "millrace", "sasl.password": self._password}
        return found

    def create_topic(self, name: str, partitions: int = 3, **config: str) -> str:
        """Create a topic; config by names with _ for each dot: max_message_bytes="2000"."""
        settings = {key.replace("_", "."): value for key, value in config.items()}
        admin = AdminClient(self.client_settings)
        admin.create_topics([NewTopic(name, partitions, 1, config=settings)])[name].result(30)
        return name

    def delete_topic(self, name: str) -> None:
        admin = AdminClient(self.client_settings)
        admin.delete_topics([name])[name].result(30)

    def records(self, topic: str) -> list[Read]:
        """Return all records of a topic, each partition in order."""
        return records(self.client_settings, topic)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "kafka.log").read_text()[-2_000:]
        try:
            admin = AdminClient(self.client_settings | {"reconnect.backoff.max.ms": 100})
            return bool(admin.list_topics(timeout=0.5).brokers)
        except KafkaException:
            return False

    def _java(self, *arguments: str) -> None:
        made = subprocess.run(
            [*_JAVA, "-cp", f"{self._jars}/*", *arguments], capture_output=True, text=True, check=False, timeout=120
        )
        assert made.returncode == 0, made.stdout + made.stderr


@contextlib.contextmanager
def running_kafka(folder: Path, password: str = "") -> Iterator[Kafka]:
    """Run Kafka on a free port; killed at the end, whatever happened in between. Raises KafkaNotFoundError."""
    kafka = Kafka(folder, password)
    try:
        kafka.start()
        yield kafka
    finally:
        if kafka._process is not None:
            kafka.kill()


def records(settings: Mapping[str, Any], topic: str) -> list[Read]:
    """Read a topic from its start to what is its end now; the records of a partition in their order."""
    consumer = Consumer(
        {**settings, "group.id": uuid.uuid4().hex, "enable.auto.commit": False, "fetch.wait.max.ms": 10}
    )
    try:
        numbers = consumer.list_topics(topic, timeout=30).topics[topic].partitions
        starts = [TopicPartition(topic, number, 0) for number in numbers]
        left = {start.partition: consumer.get_watermark_offsets(start, timeout=30)[1] for start in starts}
        consumer.assign(starts)
        found: list[Read] = []
        while sum(left.values()):
            for message in consumer.consume(sum(left.values()), timeout=0.1):
                found.append(Read.of(message))
                left[found[-1].partition] -= 1
        return sorted(found, key=lambda one: (one.partition, one.offset))
    finally:
        consumer.close()


def _cluster_id() -> str:
    """What Kafka calls a random UUID: 22 characters of Base64; one that starts with - would be taken for an option."""
    return "k" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


if __name__ == "__main__":
    print(kafka_jars(), f"(process {os.getpid()})")

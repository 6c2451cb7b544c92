"""librdkafka's mock cluster, for what a real Kafka does not do when asked: answers of any kind, brokers gone at once.

confluent-kafka's own library has it (rdkafka_mock.h), but not its Python. A mock keeps records in memory, and starts in
some milliseconds. It does not check the sequence numbers of idempotent producers: of two requests under way it takes
the second although it has refused the first, so have one under way at a time (max.in.flight) where order matters.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import confluent_kafka

PRODUCE = 0
"""The number of the API Produce (https://kafka.apache.org/protocol#protocol_api_keys)."""

_PRODUCER = 0


def _library() -> ctypes.CDLL:
    folder = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    library = ctypes.CDLL(str(next(folder.glob("librdkafka*.so*"))))
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    for name, result, *arguments in (
        ("rd_kafka_conf_new", pointer),
        ("rd_kafka_conf_set", ctypes.c_int, pointer, text, text, text, ctypes.c_size_t),
        ("rd_kafka_new", pointer, ctypes.c_int, pointer, text, ctypes.c_size_t),
        ("rd_kafka_destroy", None, pointer),
        ("rd_kafka_mock_cluster_new", pointer, pointer, ctypes.c_int),
        ("rd_kafka_mock_cluster_destroy", None, pointer),
        ("rd_kafka_mock_cluster_bootstraps", text, pointer),
        ("rd_kafka_mock_topic_create", ctypes.c_int, pointer, text, ctypes.c_int, ctypes.c_int),
        (
            "rd_kafka_mock_push_request_errors_array",
            None,
            pointer,
            ctypes.c_int16,
            ctypes.c_size_t,
            ctypes.POINTER(ctypes.c_int),
        ),
        ("rd_kafka_mock_broker_set_down", ctypes.c_int, pointer, ctypes.c_int32),
        ("rd_kafka_mock_broker_set_up", ctypes.c_int, pointer, ctypes.c_int32),
    ):
        function = getattr(library, str(name))  # kept, unlike library[name]
        function.restype, function.argtypes = result, arguments
    return library


class MockKafka:
    """A context manager: a cluster of mock brokers in this process, at `address`."""

    def __init__(self, brokers: int = 1) -> None:
        self._library: Any = _library()
        self._brokers = brokers
        settings = self._library.rd_kafka_conf_new()
        self._library.rd_kafka_conf_set(settings, b"log_level", b"0", None, 0)
        said = ctypes.create_string_buffer(512)
        self._client = self._library.rd_kafka_new(_PRODUCER, settings, said, len(said))
        assert self._client, said.value
        self._cluster = self._library.rd_kafka_mock_cluster_new(self._client, brokers)
        self.address: str = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def create_topic(self, name: str, partitions: int = 3) -> str:
        assert self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, self._brokers) == 0
        return name

    def answer_produce(self, errors: Sequence[int]) -> None:
        """Let the next Produce requests be answered so, one after the other; 0: as usual."""
        array = (ctypes.c_int * len(errors))(*errors)
        self._library.rd_kafka_mock_push_request_errors_array(self._cluster, PRODUCE, len(errors), array)

    def set_down(self) -> None:
        """Break the connections of all brokers, and take none."""
        for broker in range(1, self._brokers + 1):
            self._library.rd_kafka_mock_broker_set_down(self._cluster, broker)

    def set_up(self) -> None:
        """Let all brokers take connections again."""
        for broker in range(1, self._brokers + 1):
            self._library.rd_kafka_mock_broker_set_up(self._cluster, broker)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._client)

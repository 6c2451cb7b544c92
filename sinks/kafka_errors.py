"""What librdkafka's errors mean: which are about a record, which about the topic, which about none."""

from confluent_kafka import KafkaError

from millrace.sinks.sink import SinkDownError

ABOUT_EVENTS = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_MSG,
        KafkaError.INVALID_RECORD,
        KafkaError._INVALID_DIFFERENT_RECORD,  # noqa: SLF001  librdkafka's own codes are called so
        KafkaError.INVALID_TIMESTAMP,
        KafkaError.POLICY_VIOLATION,
        KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
    }
)
"""Of a record, or of one that came with it in a request."""

_NO_TOPIC = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001
        KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001
    }
)

LOST = frozenset(
    {
        KafkaError._PURGE_QUEUE,  # noqa: SLF001
        KafkaError._PURGE_INFLIGHT,  # noqa: SLF001
        KafkaError._FATAL,  # noqa: SLF001
        KafkaError._GAPLESS_GUARANTEE,  # noqa: SLF001
        KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
    }
)
"""The producer was ended before this record was written, or before that was known."""


def down(topic: str, error: KafkaError) -> SinkDownError:
    """Say that a topic takes nothing, why, and what to do."""
    if error.code() in _NO_TOPIC:
        return SinkDownError(f"the topic {topic} does not exist: create it, or correct its name")
    if error.code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED):
        return SinkDownError(f"may not write to the topic {topic}: give this user the right to")
    return SinkDownError(f"Kafka does not take records for {topic}: {error.str()}")

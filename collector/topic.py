"""The topic: is it there? Asked once, at the start: a wrong name should not fill the spool."""

import grpc
import structlog
from google.pubsub_v1 import types

from millrace.transforms.pubsub import open_channel

log = structlog.get_logger(__name__)

_GET = "/google.pubsub.v1.Publisher/GetTopic"
_WAIT_S = 5.0
_Request = types.GetTopicRequest.meta.pb


def problem_with_topic(topic: str) -> str | None:
    """Return why nothing could ever be published there, None where it is well or cannot be told.

    Whoever may publish need not be allowed to look (roles/pubsub.publisher is not), and a Pub/Sub that is away is what
    the spool is for: both are logged only.
    """
    request = _Request(topic=topic).SerializeToString()
    channel = open_channel()
    try:
        channel.unary_unary(_GET)(request, timeout=_WAIT_S, metadata=(("x-goog-request-params", f"topic={topic}"),))
    except grpc.RpcError as error:
        code = error.code()
        if code is grpc.StatusCode.NOT_FOUND:
            return f"there is no topic {topic}: create it, or correct --topic"
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return f"{topic} is no topic's name: {error.details()}"
        log.warning("whether the topic is there cannot be told", code=code.name)
    finally:
        channel.close()
    return None

"""The protobuf classes of google.pubsub.v1, raw: proto-plus wrappers cost more than all the rest of a call."""

from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty as Empty  # noqa: PLC0414  (re-exported)
from google.protobuf.timestamp_pb2 import Timestamp
from google.pubsub_v1 import types


def _raw(wrapper: Any) -> Any:
    return wrapper.meta.pb


Topic = _raw(types.Topic)
Subscription = _raw(types.Subscription)
Snapshot = _raw(types.Snapshot)
PubsubMessage = _raw(types.PubsubMessage)
DeadLetterPolicy = _raw(types.DeadLetterPolicy)
RetryPolicy = _raw(types.RetryPolicy)
PushConfig = _raw(types.PushConfig)
ExpirationPolicy = _raw(types.ExpirationPolicy)

PublishRequest = _raw(types.PublishRequest)
PublishResponse = _raw(types.PublishResponse)
GetTopicRequest = _raw(types.GetTopicRequest)
DeleteTopicRequest = _raw(types.DeleteTopicRequest)
UpdateTopicRequest = _raw(types.UpdateTopicRequest)
ListTopicsRequest = _raw(types.ListTopicsRequest)
ListTopicsResponse = _raw(types.ListTopicsResponse)
ListTopicSubscriptionsRequest = _raw(types.ListTopicSubscriptionsRequest)
ListTopicSubscriptionsResponse = _raw(types.ListTopicSubscriptionsResponse)
ListTopicSnapshotsRequest = _raw(types.ListTopicSnapshotsRequest)
ListTopicSnapshotsResponse = _raw(types.ListTopicSnapshotsResponse)
DetachSubscriptionRequest = _raw(types.DetachSubscriptionRequest)
DetachSubscriptionResponse = _raw(types.DetachSubscriptionResponse)

GetSubscriptionRequest = _raw(types.GetSubscriptionRequest)
DeleteSubscriptionRequest = _raw(types.DeleteSubscriptionRequest)
UpdateSubscriptionRequest = _raw(types.UpdateSubscriptionRequest)
ListSubscriptionsRequest = _raw(types.ListSubscriptionsRequest)
ListSubscriptionsResponse = _raw(types.ListSubscriptionsResponse)
PullRequest = _raw(types.PullRequest)
PullResponse = _raw(types.PullResponse)
AcknowledgeRequest = _raw(types.AcknowledgeRequest)
ModifyAckDeadlineRequest = _raw(types.ModifyAckDeadlineRequest)
StreamingPullRequest = _raw(types.StreamingPullRequest)
StreamingPullResponse = _raw(types.StreamingPullResponse)
SeekRequest = _raw(types.SeekRequest)
SeekResponse = _raw(types.SeekResponse)
CreateSnapshotRequest = _raw(types.CreateSnapshotRequest)
GetSnapshotRequest = _raw(types.GetSnapshotRequest)
UpdateSnapshotRequest = _raw(types.UpdateSnapshotRequest)
DeleteSnapshotRequest = _raw(types.DeleteSnapshotRequest)
ListSnapshotsRequest = _raw(types.ListSnapshotsRequest)
ListSnapshotsResponse = _raw(types.ListSnapshotsResponse)

NOTHING: bytes = Empty().SerializeToString()


def duration(seconds: int) -> Any:
    """A protobuf Duration of whole seconds."""
    return Duration(seconds=seconds)


def timestamp(time_us: int) -> Any:
    """A protobuf Timestamp of a time in microseconds since 1970."""
    return Timestamp(seconds=time_us // 1_000_000, nanos=time_us % 1_000_000 * 1_000)


def time_us(stamp: Any) -> int:
    """Microseconds since 1970 of a protobuf Timestamp, rounded up: what is before it stays before it."""
    return int(stamp.seconds) * 1_000_000 - (-int(stamp.nanos) // 1_000)

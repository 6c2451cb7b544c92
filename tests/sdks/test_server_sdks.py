"""The four server SDKs, unmodified and in their own runtimes: each kind of call, each field of the row it becomes."""

import datetime as dt
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.sdks.calls import GIVEN_TIME, SDKS, NotSentError, Sdk, calls_of, expected_row, send
from tests.sdks.stand import Row, Stand, by_id, told


@pytest.fixture(params=SDKS, ids=str)
def sdk(request: pytest.FixtureRequest) -> Sdk:
    """Each of them."""
    chosen: Sdk = request.param
    return chosen


@pytest.fixture
def packages(sdk: Sdk, request: pytest.FixtureRequest) -> Path | None:
    """Where its packages are; asked for by the tests of Node only."""
    return request.getfixturevalue("node_packages") if sdk.in_node else None


def test_each_kind_of_call_becomes_its_row(stand: Stand, sdk: Sdk, packages: Path | None) -> None:
    calls = calls_of(f"{sdk}-{uuid.uuid4().hex[:8]}")
    began = dt.datetime.now(dt.UTC)
    send(sdk, stand.url, stand.keys["server"], calls, packages)
    ended = dt.datetime.now(dt.UTC)
    found = by_id(stand.rows_until(lambda rows: len(rows) >= len(calls)))
    assert {id_: _without_stamp(sdk, told(row)) for id_, row in found.items()} == {
        call["messageId"]: expected_row(sdk, call, packages) for call in calls
    }
    _check_times(sdk, [found[call["messageId"]] for call in calls], began, ended)


def _without_stamp(sdk: Sdk, row: Row) -> Row:
    """Return a row without the `timestamp` that some SDK's batch has for all its events; it is a time, and no other."""
    if sdk.stamps_rest:
        stamp = row["rest"].pop("timestamp")
        assert dt.datetime.fromisoformat(stamp) <= dt.datetime.now(dt.UTC)
    return row


def _check_times(sdk: Sdk, rows: Sequence[Row], began: dt.datetime, ended: dt.datetime) -> None:
    began -= dt.timedelta(milliseconds=1)  # the Node SDKs cut theirs to milliseconds
    for number, row in enumerate(rows):
        assert began <= row["sent_at"] <= row["received_at"] + dt.timedelta(milliseconds=1) <= ended
        assert row["clock_flag"] is None
        # RudderStack's Node SDK sends the time of the call as the original one, and a given time beside it.
        if number == 1 and not sdk.stamps_rest:
            assert row["original_timestamp"] == dt.datetime.fromisoformat(GIVEN_TIME)
        else:
            assert began <= row["original_timestamp"] <= row["sent_at"]
        assert row["occurred_at"] == row["received_at"] - (row["sent_at"] - row["original_timestamp"])


def test_an_event_without_an_id_of_its_own_has_the_one_that_the_sdk_gave(
    stand: Stand, sdk: Sdk, packages: Path | None
) -> None:
    mark = uuid.uuid4().hex
    send(sdk, stand.url, stand.keys["server"], [{"type": "track", "userId": "ann", "event": mark}] * 3, packages)
    rows = stand.rows_until(lambda rows: len(rows) >= 3)
    ids = {row["message_id"] for row in rows if row["event"] == mark}
    assert len(ids) == 3
    assert all(uuid.UUID(id_[-36:]) for id_ in ids)  # ours would be `<request_id>-<place>`


def test_a_wrong_key_is_told_to_the_application_and_not_tried_again(
    stand: Stand, sdk: Sdk, packages: Path | None
) -> None:
    call = {"type": "track", "userId": "ann", "event": "Refused"}
    # RudderStack's for Python would try for minutes, were there no `code` and `message` in the answer.
    with pytest.raises(NotSentError, match=r"unknown_key|401|Unauthorized"):
        send(sdk, stand.url, "mrs_" + "x" * 36, [call], packages)

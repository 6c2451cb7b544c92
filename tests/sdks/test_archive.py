"""From the call of each SDK to the archive: the collector, the broker and the whole job, compared field by field."""

import uuid
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.sdks.calls import SDKS, Sdk, calls_of, expected_row, send
from tests.sdks.stand import Row, Stand, told
from tests.sdks.visitor import Visitor, name_of, row_of
from tests.support.job import running_job

pytestmark = pytest.mark.slow

BROWSERS = ("segment", "rudderstack")


def test_what_every_sdk_sends_is_in_the_archive_once(
    stand: Stand, browser: Browser, node_packages: Path, tmp_path: Path
) -> None:
    topic = stand.pubsub.get_subscription(stand.subscription).topic
    subscription = stand.pubsub.create_subscription(topic)
    with running_job(tmp_path, stand.pubsub.address, subscription) as job:
        calls = {sdk: calls_of(f"{sdk}-{uuid.uuid4().hex[:8]}") for sdk in SDKS}
        for sdk, made in calls.items():
            send(sdk, stand.url, stand.keys["server"], made, node_packages)
        clicked = _click(stand, browser)
        expected = {call["messageId"]: (sdk, call) for sdk, made in calls.items() for call in made}
        job.wait_for(archived=len(expected) + len(clicked))
        assert job.drain() == 0
    archived: list[Row] = job.rows("archive").to_pylist()
    assert Counter(row["message_id"] for row in archived) == Counter([*expected, *clicked])
    assert job.rows("dead_letters").num_rows == 0
    for row in archived:
        of = row["message_id"]
        assert told(row) == (_of_a_server(*expected[of], row, node_packages) if of in expected else row_of(clicked[of]))
    _check_order(archived)


def _click(stand: Stand, browser: Browser) -> Mapping[str, Mapping[str, Any]]:
    """Do what there is to do on the shelf, with either SDK; return what was sent, by message id."""
    sent: dict[str, Mapping[str, Any]] = {}
    for mode in BROWSERS:
        with browser.new_context() as context:
            visitor = Visitor(context, stand, mode)
            for selector in ("[data-product=cup-01] .add", "#club", "#account", "#sign-in [value=yes]"):
                visitor.click(selector)
            names = ["page Shelf", "track Product Added", "group", "alias", "identify"]
            assert Counter(map(name_of, visitor.rows_until(names))) == Counter(names)
            sent |= {id_: copies[0] for id_, copies in visitor.sent().items()}
    assert len(sent) == 2 * len(names)
    return sent


def _of_a_server(sdk: Sdk, call: Mapping[str, Any], row: Row, packages: Path) -> Row:
    expected = expected_row(sdk, call, packages)
    if sdk.stamps_rest:  # a time that the SDK makes up: what it is, tests/sdks/test_server_sdks.py says
        expected["rest"]["timestamp"] = told(row)["rest"]["timestamp"]
    return expected


def _check_order(archived: list[Row]) -> None:
    for user in {row["user_key"] for row in archived}:
        mine = sorted((row for row in archived if row["user_key"] == user), key=lambda row: row["order_index"])
        times = [row["occurred_at"] for row in mine if not row["is_late"]]
        assert times == sorted(times)

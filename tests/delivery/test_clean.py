"""Cleaning without order: what a lane delivers is, row for row, what the job archives, and nothing that it does not."""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from millrace.config.job import JobConfig, read_job
from millrace.delivery.clean import Cleaned, Cleaner
from millrace.local.shop import Habits, Shop
from millrace.schemas.envelope import Envelope
from millrace.schemas.event import ARCHIVE, BATCH
from tests.examples.names import example
from tests.pipelines.test_everything import NOON_S, ROOT, run
from tests.support.privacy import RING, set_secrets
from tests.transforms.test_decode_hostile import BAD_EVENTS

NOW_US = (NOON_S + 900) * 1_000_000
CONFIG = """
privacy:
  {ring}
  fields:
    - {{field: context_ip, policy: truncate}}
    - {{field: user_id, policy: hash}}
    - {{field: traits.email, policy: encrypt}}
  consent: {{required_for_archive: [analytics]}}
  suppression: {{file: {file}}}
contracts: {{folder: {root}/examples/plan, unplanned: flag, policy: dead_letter}}
enrich: [user_agent, url, referrer, campaign, locale, bots]
sessions: {{}}
touch: {{}}
transforms:
- {{use: 'currency:ConvertCurrency', with: {{rates: {root}/examples/currency/rates.csv}}}}
"""
PLACED = {field.name for field in ARCHIVE} - {field.name for field in BATCH}


def an_event(name: str, **more: Any) -> bytes:
    said = {"type": "track", "event": "Tried", "messageId": name, "userId": f"user of {name}",
            "originalTimestamp": "2026-11-25T12:00:00Z", **more}  # fmt: skip
    return json.dumps(said).encode()


def the_log() -> list[Envelope]:
    """The sample shop's events, and some that may not be delivered."""
    seconds = itertools.count(NOON_S)
    shop = Shop(seed=5, users=30, habits=Habits(duplicates=0), clock=lambda: float(next(seconds)))
    bodies = [(each.body, dict(each.attributes)) for each in itertools.islice(shop, 200)]
    denied = {"consentManagement": {"deniedConsentIds": ["analytics"]}}
    bodies += [(text, {}) for text, _ in BAD_EVENTS.values()]
    bodies += [
        (an_event("suppressed", userId="ann", context={"ip": "203.0.113.77"}), {"ip": "203.0.113.77"}),
        (an_event("denied", context=denied), {}),
        (an_event("violates", event="Order Completed", properties={"total": "much"}), {}),
        (an_event("kept", context={"ip": "203.0.113.77", "traits": {"email": "ann@example.com"}}), {}),
        (an_event("kept"), {}),  # another event with its id
    ]
    return [
        Envelope(body, attributes, f"e{number}", NOON_S * 1_000_000 + number, NOON_S * 1_000_000 + number, number)
        for number, (body, attributes) in enumerate(bodies)
    ]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobConfig:
    set_secrets(monkeypatch)
    example(monkeypatch, "currency")
    (tmp_path / "ids").write_text("ann\n")
    return read_job(CONFIG.format(ring=RING, file=tmp_path / "ids", root=ROOT), "F")


def rows_of(cleaned: Sequence[Cleaned], left_out: set[str]) -> list[dict[str, Any]]:
    rows = [row for each in cleaned for row in each.batch.to_pylist()]
    return sorted(({name: row[name] for name in row if name not in left_out} for row in rows), key=repr)


@pytest.mark.slow
def test_what_is_delivered_is_what_the_job_archives_but_for_what_only_the_order_tells(config: JobConfig) -> None:
    log = the_log()
    tables = run([[each._replace(receipt=-1) for each in log]], config)
    of_users = {field.name for step in (config.sessions, config.touch) if step is not None for field in step.adds}
    only_order = PLACED | of_users
    archived = sorted(
        ({name: row[name] for name in row if name not in only_order} for row in tables["archive"]), key=repr
    )
    cleaner = Cleaner(config)
    # Pulled in order: which of two events with one id keeps it hangs on which comes first.
    cleaned = [cleaner.clean(log[start : start + 37], NOW_US) for start in range(0, len(log), 37)]
    names = set(archived[0])
    for each in cleaned:
        assert all(each.batch.column(name).null_count == each.batch.num_rows for name in only_order)
    found = rows_of(cleaned, only_order | {"arrived_at", "receipt"})
    assert set(found[0]) == names
    assert [{name: row[name] for name in archived[0]} for row in found] == archived
    counts = Counter(why for each in cleaned for why, receipts in each.left_out for _ in receipts)
    assert counts == {"refused": len(tables["dead letters"]), "dropped": 2}
    assert len(tables["dropped"]) == 2
    assert {"suppressed", "denied", "violates"}.isdisjoint(row["message_id"] for row in found)
    text = repr(found)
    for private in ("user of", "ann@example.com", "203.0.113.77"):
        assert private not in text
    assert sum("kept" in row["message_id"] for row in found) == 2


def test_an_envelope_that_is_read_again_after_a_failure_has_its_events_and_one_that_comes_again_has_not() -> None:
    cleaner = Cleaner(JobConfig())
    body = b"[" + b",".join([an_event("a"), an_event("a"), an_event("b")]) + b"]"
    first = Envelope(body, {}, "1", NOW_US, NOW_US, 7)
    assert cleaner.clean([first], NOW_US).left_out_of() == [("copies", 7, 1)]
    again = cleaner.clean([first], NOW_US, again=True)
    assert again.batch.column("message_id").to_pylist() == ["a", "b"]
    assert again.left_out_of() == [("copies", 7, 1)]
    repeated = cleaner.clean([first._replace(receipt=8)], NOW_US)
    assert repeated.batch.num_rows == 0
    assert sorted(repeated.left_out_of()) == [("copies", 8, 1), ("repeats", 8, 2)]
    other = cleaner.clean([first._replace(envelope_id="2", receipt=9)], NOW_US)
    assert other.left_out_of() == [("copies", 9, 3)]


def test_nothing_comes_of_nothing() -> None:
    cleaned = Cleaner(JobConfig()).clean([], NOW_US)
    assert (cleaned.batch.num_rows, cleaned.left_out) == (0, [])

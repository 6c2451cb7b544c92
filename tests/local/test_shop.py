"""The sample shop: what it sends, read back by an independent decoder, is what it says it sends."""

import gzip
import itertools
import json
import re
import uuid
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.local.shop import Expected, Habits, Sent, Shop
from millrace.schemas import envelope
from millrace.schemas.dead_letter import Reason
from millrace.schemas.event import TYPES
from millrace.transforms.decode import decode_envelopes

NOON = 1_764_158_400.0
NOTHING_WRONG = Habits(duplicates=0, broken=0, late=0, delayed=0, slow=0, shuffled=0)


def ticking(step_s: float) -> Callable[[], float]:
    """Return a clock that shows noon, and `step_s` more each time it is read."""
    ticks = itertools.count()
    return lambda: NOON + step_s * next(ticks)


def traffic(bodies: int, seed: int = 7, users: int = 400, habits: Habits | None = None) -> list[Sent]:
    """Return the first bodies of a shop, 5 ms apart."""
    return list(itertools.islice(Shop(seed, users, ticking(0.005), habits), bodies))


@pytest.fixture(scope="module")
def sents() -> list[Sent]:
    return traffic(30_000)


def readable(sent: Sent) -> tuple[list[dict[str, Any]], int]:
    """Read a body with nothing but the standard library: its events, and how many records are broken."""
    try:
        encoding = sent.attributes.get(envelope.CONTENT_ENCODING, "identity")
        if encoding not in {"identity", "gzip"}:
            return [], 1
        text = (gzip.decompress(sent.body) if encoding == "gzip" else sent.body).decode()
        parts = _parts(text)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, json.JSONDecodeError):
        return [], 1
    events = [part for part in parts if _is_event(part)]
    return events, max(1, len(parts)) - len(events)


def _parts(text: str) -> list[Any]:
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) != 1:
        return [json.loads(line) for line in lines]
    whole = json.loads(text)
    if isinstance(whole, dict) and "batch" in whole:
        assert isinstance(whole["batch"], list)
        return whole["batch"]
    return whole if isinstance(whole, list) else [whole]


def _is_event(part: dict[str, Any]) -> bool:
    ids = [part.get("userId"), part.get("anonymousId")]
    return (
        part.get("type") in TYPES
        and any(ids)
        and all(isinstance(value, str | None) for value in [*ids, part["messageId"]])
        and isinstance(part["context"], dict)
        and "\0" not in json.dumps(part, ensure_ascii=False).replace("\\u0000", "\0")
    )


def times(event: dict[str, Any], sent: Sent) -> tuple[float, float]:
    """Return when an event occurred by the corrected clock and when it was received, in seconds."""
    received_s = datetime.fromisoformat(sent.attributes[envelope.RECEIVED_AT]).timestamp()
    original = event["originalTimestamp"] if "originalTimestamp" in event else event["timestamp"]
    lag = datetime.fromisoformat(event["sentAt"]) - datetime.fromisoformat(original)
    return received_s - lag.total_seconds(), received_s


def test_the_same_seed_and_clock_give_the_same_bytes() -> None:
    assert traffic(3_000) == traffic(3_000)
    assert traffic(50, seed=1) != traffic(50, seed=2)


def test_every_body_holds_what_it_counts_as(sents: list[Sent]) -> None:
    for sent in sents:
        events, broken = readable(sent)
        assert tuple(event["messageId"] for event in events) == sent.message_ids
        assert (len(events) + broken, broken) == (sent.events, sent.broken)
        assert len(sent.reasons) == sent.broken


def test_expectations_add_up_to_an_independent_reading(sents: list[Sent]) -> None:
    expected = Expected()
    ids: list[str] = []
    broken = 0
    for sent in sents:
        expected.add(sent)
        events, spoiled = readable(sent)
        ids += [event["messageId"] for event in events]
        broken += spoiled
    assert expected.message_ids == set(ids)
    assert (expected.copies, expected.broken) == (len(ids) - len(set(ids)), broken)
    assert expected.records == sum(sent.events for sent in sents) == len(ids) + broken


def test_the_decode_stage_agrees_body_by_body() -> None:
    for number, sent in enumerate(traffic(4_000, users=2_000, habits=Habits(broken=0.05))):
        now_us = int(datetime.fromisoformat(sent.attributes[envelope.RECEIVED_AT]).timestamp() * 1e6)
        arrived = envelope.Envelope(sent.body, sent.attributes, str(number), now_us, now_us)
        decoded = decode_envelopes([arrived], now_us)
        rows = sorted(decoded.batch.to_pylist(), key=lambda row: int(row["envelope_index"]))
        assert tuple(row["message_id"] for row in rows) == sent.message_ids
        letters = decoded.letters.to_pylist()
        assert tuple(Reason(letter["reason"]) for letter in letters) == sent.reasons
        assert tuple(letter["payload"] for letter in letters) == sent.payloads


def test_shares_and_sizes_are_as_advertised(sents: list[Sent]) -> None:
    expected, sizes, waits = Expected(), [], []
    for sent in sents:
        expected.add(sent)
        for event in readable(sent)[0]:
            sizes.append(len(json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()))
            if "sentAt" in event:
                occurred_s, received_s = times(event, sent)
                waits.append(received_s - occurred_s)
    assert 650 < sum(sizes) / len(sizes) < 850
    assert 0.01 < expected.copies / expected.records < 0.02
    assert 0.002 < expected.broken / expected.records < 0.004
    assert 0.005 < sum(wait > 10 for wait in waits) / len(waits) < 0.04
    assert 0.05 < sum(2 < wait <= 10 for wait in waits) / len(waits) < 0.4
    assert min(waits) >= 0


def test_every_shape_and_every_reason_and_every_type_occurs() -> None:
    shapes: Counter[str] = Counter()
    reasons: Counter[Reason] = Counter()
    kinds: Counter[str] = Counter()
    for sent in traffic(8_000, habits=Habits(broken=0.1)):
        reasons.update(sent.reasons)
        if not sent.broken:
            packed = sent.attributes.get(envelope.CONTENT_ENCODING, "plain")
            text = (gzip.decompress(sent.body) if packed == "gzip" else sent.body).decode()
            shape = re.match(r'\{"batch"|\[|\{', text)
            assert shape is not None
            shapes[f"{packed} {'lines' if text.endswith(chr(10)) else shape[0]}"] += 1
            kinds.update(event["type"] for event in readable(sent)[0])
    assert set(shapes) == {
        "plain {", 'plain {"batch"', "plain [", "plain lines", 'gzip {"batch"', "gzip [", "gzip lines",
    }  # fmt: skip
    assert {reason.value for reason in reasons} == {
        "empty", "not_gzip", "unknown_encoding", "not_utf8", "not_json", "forbidden_character", "not_an_event",
        "no_user",
    }  # fmt: skip
    assert set(kinds) == set(TYPES)


def test_a_clock_is_wrong_by_the_same_offset_in_every_event_of_its_device(sents: list[Sent]) -> None:
    offsets: dict[str, list[float]] = defaultdict(list)
    for sent in sents:
        for event in readable(sent)[0]:
            if "sentAt" in event:
                sent_s = datetime.fromisoformat(event["sentAt"]).timestamp()
                offsets[event["anonymousId"]].append(sent_s - times(event, sent)[1])
    assert all(max(found) - min(found) < 0.1 for found in offsets.values())
    skews = [abs(found[0]) for found in offsets.values()]
    assert sum(skew > 60 for skew in skews) > 0.15 * len(skews)
    assert any(skew > 365 * 86_400 for skew in skews)


def test_requests_and_events_are_out_of_order(sents: list[Sent]) -> None:
    latest: dict[str, float] = defaultdict(float)
    overtaken = shuffled = 0
    for sent in sents:
        stamps = [(event["anonymousId"], *times(event, sent)) for event in readable(sent)[0] if "sentAt" in event]
        shuffled += stamps != sorted(stamps)
        for device, occurred_s, _ in stamps:
            overtaken += occurred_s < latest[device] - 0.1
            latest[device] = max(latest[device], occurred_s)
    assert shuffled > 300
    assert overtaken > 300


def test_a_few_users_do_most_of_it_on_several_devices(sents: list[Sent]) -> None:
    activity: Counter[str] = Counter()
    devices: dict[str, set[str]] = defaultdict(set)
    for sent in sents:
        for event in readable(sent)[0]:
            if event.get("userId"):
                activity[event["userId"]] += 1
                devices[event["userId"]].add(event["anonymousId"])
    ranked = [count for _, count in activity.most_common()]
    assert sum(ranked[:40]) > 0.25 * sum(ranked)
    assert sum(len(found) > 1 for found in devices.values()) > 0.5 * len(devices)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), users=st.integers(1, 50), step_s=st.sampled_from([0.0, 1e-6, 0.01, 30.0]))
def test_any_shop_keeps_selling_at_any_pace(seed: int, users: int, step_s: float) -> None:
    habits = Habits(late=0.5, delayed=0.5, broken=0, duplicates=0)
    sents = list(itertools.islice(Shop(seed, users, ticking(step_s), habits), 60))
    ids = [message_id for sent in sents for message_id in sent.message_ids]
    assert len(ids) == len(set(ids)) == sum(sent.events for sent in sents)
    assert all(uuid.UUID(message_id).version == 4 for message_id in ids)


def test_habits_can_be_turned_off() -> None:
    expected = Expected()
    for sent in (sents := traffic(2_000, habits=NOTHING_WRONG)):
        expected.add(sent)
    assert (expected.copies, expected.broken, expected.reasons) == (0, 0, Counter())
    waits = [-times(event, sent)[0] + times(event, sent)[1]
             for sent in sents for event in readable(sent)[0] if "sentAt" in event]  # fmt: skip
    assert max(waits) < 10


def test_a_shop_without_users_does_not_open() -> None:
    with pytest.raises(ValueError, match="users must be positive, got 0"):
        Shop(users=0)

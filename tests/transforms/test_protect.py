"""Protect: what is left of each field, who is left out, and that every row leaves by one door."""

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.schemas import dropped
from millrace.schemas.event import BATCH
from millrace.transforms import fields as fields_module
from millrace.transforms.protection import Protection
from tests.support.batches import NOON_US, batch, event
from tests.support.decoding import decode
from tests.support.decoding import event as sent
from tests.support.privacy import keys, protection, set_secrets, settings

KEYS = keys()


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    set_secrets(monkeypatch)


def protect(rules: list[str], *rows: dict[str, Any], more: str = "") -> list[dict[str, Any]]:
    """Return what is left of rows; none may be left out."""
    found = protection(rules, more).protect(batch(rows), NOON_US)
    assert found.dropped == []
    left: list[dict[str, Any]] = found.batch.to_pylist()
    return left


def changes(rules: list[str], **row: Any) -> dict[str, Any]:
    """Return what rules change in one row."""
    before = batch([event("1", **row)]).to_pylist()[0]
    (after,) = protect(rules, event("1", **row))
    assert list(after) == list(before)
    return {name: value for name, value in after.items() if value != before[name]}


@pytest.mark.parametrize(
    ("rule", "value", "left"),
    [
        ("field: context_ip, policy: truncate", "203.0.113.77", "203.0.113.0"),
        ("field: context_ip, policy: truncate", "[2001:db8:1:2::3]:443", "2001:db8:1::"),
        ("field: context_ip, policy: truncate", "at home", None),
        ("field: context_ip, policy: drop", "203.0.113.77", None),
        ("field: context_ip, policy: hash", "203.0.113.77", KEYS.hash("203.0.113.77")),
        ("field: context_ip, policy: encrypt", "203.0.113.77", KEYS.encrypt("203.0.113.77")),
        ("field: context_page_title, policy: drop", "Ann's page", None),
        ("field: context_page_title, policy: truncate, characters: 3", "Änn's page", "Änn"),
        ("field: context_device_id, policy: hash", "d-1", KEYS.hash("d-1")),
        ("field: context_user_agent, policy: encrypt", "Mozilla", KEYS.encrypt("Mozilla")),
        ("field: properties, policy: drop", '{"a":1}', None),
        ("field: properties.email, policy: drop", '{"email":"a@b","n":1}', '{"n":1}'),
        ("field: properties.email, policy: truncate, characters: 1", '{"email":"a@b"}', '{"email":"a"}'),
        ("field: properties.ip, policy: truncate", '{"ip":"203.0.113.7"}', '{"ip":"203.0.113.0"}'),
        ("field: properties.email, policy: hash", '{"email":"a@b"}', f'{{"email":"{KEYS.hash("a@b")}"}}'),
        ("field: traits.address.street, policy: encrypt", '{"address":{"street":"Elm 1"}}',
         f'{{"address":{{"street":"{KEYS.encrypt("Elm 1")}"}}}}'),
        ("field: 'properties.items[].sku', policy: hash", '{"items":[{"sku":"s"},{"sku":"s"}]}',
         f'{{"items":[{{"sku":"{KEYS.hash("s")}"}},{{"sku":"{KEYS.hash("s")}"}}]}}'),
        ("field: context_rest.traits.email, policy: drop", '{"traits":{"email":"a@b"},"x":1}', '{"traits":{},"x":1}'),
        ("field: rest.groupId, policy: hash", '{"groupId":"g"}', f'{{"groupId":"{KEYS.hash("g")}"}}'),
        ("field: properties.email, policy: drop", '{"\\u0065mail":"a@b","n":1}', '{"n":1}'),
    ],
)  # fmt: skip
def test_what_is_left_of_a_field_and_nothing_else_changes(rule: str, value: str, left: str | None):
    name = rule.removeprefix("field: ").removeprefix("'").partition(",")[0].partition(".")[0]
    assert changes([rule], **{name: value}) == {name: left}


@pytest.mark.parametrize(
    "rule",
    ["field: context_ip, policy: keep", "field: properties.email, policy: hash", "field: traits, policy: keep",
     "field: context_locale, policy: drop", "field: 'rest.\"e mail\"', policy: drop"],
)  # fmt: skip
def test_a_rule_that_finds_nothing_changes_nothing(rule: str):
    assert changes([rule], context_ip="203.0.113.77", properties='{"n":"email"}', traits='{"email": 1}') == {}


def test_the_key_of_the_user_follows_the_ids():
    hashed = KEYS.hash
    both = ["field: user_id, policy: hash", "field: anonymous_id, policy: hash"]
    known = event("1", user="ann", user_id="ann", anonymous_id="d")
    unknown = event("2", user="d", anonymous_id="d")
    rows = [(row["user_id"], row["anonymous_id"], row["user_key"]) for row in protect(both, known, unknown)]
    assert rows == [(hashed("ann"), hashed("d"), hashed("ann")), (None, hashed("d"), hashed("d"))]
    rows = [(row["user_id"], row["anonymous_id"], row["user_key"]) for row in protect(both[:1], known, unknown)]
    assert rows == [(hashed("ann"), "d", hashed("ann")), (None, "d", "d")]
    sealed = KEYS.encrypt("d")
    (row,) = protect(["field: anonymous_id, policy: encrypt"], unknown)
    assert (row["anonymous_id"], row["user_key"]) == (sealed, sealed)


def test_what_names_the_user_elsewhere_follows():
    rest = '{"previousId":"ann","groupId":"g"}'
    found = changes(["field: user_id, policy: hash"], user="ann", user_id="ann", rest=rest)
    assert found["rest"] == f'{{"previousId":"{KEYS.hash("ann")}","groupId":"g"}}'
    found = changes(["field: traits.email, policy: drop"], traits='{"email":1}', context_rest='{"traits":{"email":1}}')
    assert found == {"traits": "{}", "context_rest": '{"traits":{}}'}
    found = changes(["field: traits, policy: drop"], context_rest='{"traits":{"a":1},"b":2}')
    assert found == {"context_rest": '{"b":2}'}


def test_the_first_rule_that_is_for_a_row_counts():
    rules = [
        "field: properties.a, policy: keep, sources: [office]",
        "field: properties.a, policy: drop, types: [identify, page]",
        "field: properties.a, policy: truncate, characters: 1, types: [track], events: [Bought, Sold]",
        "field: properties.a, policy: hash",
        "field: context_locale, policy: drop, sources: [office, shop]",
    ]
    given_: list[dict[str, Any]] = [
        {"source_id": "office", "type": "page"},
        {"type": "page"},
        {"event": "Bought"},
        {"event": "Lost"},
        {"source_id": "app", "type": "screen", "event": "Bought"},
    ]
    rows = [event(str(at), properties='{"a":"xyz"}', context_locale="de", **each) for at, each in enumerate(given_)]
    found = [(json.loads(row["properties"]).get("a"), row["context_locale"]) for row in protect(rules, *rows)]
    hashed = KEYS.hash("xyz")
    assert found == [("xyz", None), (None, None), ("x", None), (hashed, None), (hashed, "de")]
    one_by_one = [protect(rules, row)[0] for row in rows]
    assert one_by_one == protect(rules, *rows)


PROPERTIES = st.dictionaries(
    st.sampled_from(["email", "n"]), st.none() | st.text(max_size=3) | st.integers(), max_size=2
)
ROWS = st.fixed_dictionaries(
    {
        "source_id": st.sampled_from(["shop", "office"]),
        "type": st.sampled_from(["track", "page"]),
        "user_id": st.sampled_from(["ann", "bob", None]),
        "anonymous_id": st.sampled_from(["d", "e"]),
        "context_ip": st.none() | st.ip_addresses().map(str),
        "context_locale": st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        "properties": st.none() | PROPERTIES.map(json.dumps),
        "context_rest": st.none() | st.just('{"consentManagement":{"deniedConsentIds":["ads"]}}'),
    }
)
RULES = [
    "field: context_ip, policy: truncate",
    "field: user_id, policy: hash",
    "field: anonymous_id, policy: encrypt, sources: [shop]",
    "field: properties.email, policy: hash, types: [track]",
    "field: properties.email, policy: drop",
]


@given(st.lists(ROWS, max_size=6), st.booleans())
def test_every_row_is_in_one_place_and_protecting_twice_is_protecting_once(rows: list[dict[str, Any]], listed: bool):
    given_ = batch(
        [event(str(at), user=row["user_id"] or row["anonymous_id"], receipt=at, **row) for at, row in enumerate(rows)]
    )
    with pytest.MonkeyPatch.context() as patch:
        set_secrets(patch)
        stage = protection(RULES, "consent: {required_for_archive: [ads]}\n")
    found = stage.protect(given_, NOON_US)
    left_out = [row["receipt"] for each in found.dropped for row in each.to_pylist()]
    assert sorted(found.batch.column("receipt").to_pylist() + left_out) == list(range(len(rows)))
    assert left_out == [at for at, row in enumerate(rows) if row["context_rest"]]
    again = stage.protect(found.batch.select(BATCH.names), NOON_US)
    assert (again.batch, again.dropped) == (found.batch, [])
    for row in found.batch.to_pylist():
        assert row["user_key"] == (row["user_id"] or row["anonymous_id"])
        assert row["context_locale"] == rows[row["receipt"]]["context_locale"]


def test_suppressed_users_leave_a_record_and_no_content(tmp_path: Path):
    (tmp_path / "ids").write_text("ann\ndevice\n")
    stage = protection(["field: user_id, policy: hash"], f"suppression: {{file: {tmp_path / 'ids'}}}\n")
    rows = [
        event("1", user_id="ann", properties='{"secret":1}', receipt=5),
        event("2", user_id="bob"),
        event("3", user_id="eve", anonymous_id="device", receipt=6),
        event("4", user_id=KEYS.hash("ann")),  # as a replay brings it
        event("5", user_id=keys("v1").hash("ann")),  # from before the rotation
    ]
    found = stage.protect(batch(rows), NOON_US)
    assert found.batch.column("message_id").to_pylist() == ["2"]
    (records,) = found.dropped
    assert records.schema == dropped.BATCH
    told = [(row["message_id"], row["rule"], row["receipt"]) for row in records.to_pylist()]
    assert told == [
        ("1", "suppression", 5),
        ("3", "suppression", 6),
        ("4", "suppression", -1),
        ("5", "suppression", -1),
    ]
    assert "secret" not in str(records.to_pylist())


def test_without_consent_an_event_is_left_out_of_the_archive():
    denied = {"consentManagement": {"provider": "custom", "deniedConsentIds": ["ads"]}}
    given_ = decode(sent(messageId="1", context=denied), sent(messageId="2"), sent(messageId="3", context={
        "consent": {"categoryPreferences": {"ads": True, "news": False}}})).batch  # fmt: skip
    found = protection(more="consent: {required_for_archive: [ads]}\n").protect(given_, NOON_US)
    assert found.batch.schema.names == [*BATCH.names, "consent_denied"]
    kept = zip(
        found.batch.column("message_id").to_pylist(), found.batch.column("consent_denied").to_pylist(), strict=True
    )
    assert dict(kept) == {"2": None, "3": '["news"]'}
    (records,) = found.dropped
    assert [(row["message_id"], row["rule"]) for row in records.to_pylist()] == [("1", "consent")]
    strict = protection(more="consent: {required_for_archive: [ads], silent: drop}\n").protect(given_, NOON_US)
    assert strict.batch.column("message_id").to_pylist() == ["3"]
    only_told = protection(more="consent: {}\n").protect(given_, NOON_US)
    assert (only_told.batch.num_rows, only_told.dropped) == (3, [])


def test_an_event_that_cannot_be_protected_is_left_out_and_takes_nothing_with_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def breaks(text: bytes, tree: Any) -> bytes:
        if b"broken" in text:
            raise ValueError(text)
        return text

    monkeypatch.setattr(fields_module, "rewrite", breaks)
    rows = [
        event(str(at), properties=json.dumps({"a": word}), receipt=at) for at, word in enumerate(["x", "broken", "y"])
    ]
    with caplog.at_level(logging.DEBUG):
        found = protection(["field: properties.a, policy: hash"]).protect(batch(rows), NOON_US)
    assert found.batch.column("receipt").to_pylist() == [0, 2]
    assert [(row["rule"], row["receipt"]) for each in found.dropped for row in each.to_pylist()] == [("privacy", 1)]
    assert "ValueError" in caplog.text
    assert "broken" not in caplog.text


def test_a_text_that_is_no_json_is_not_kept():
    (row,) = protect(["field: properties.a, policy: hash"], event("1", properties='{"a":'))
    assert row["properties"] is None


def test_an_empty_batch_and_slices_pass():
    stage = protection(RULES)
    assert stage.protect(batch([]), NOON_US).batch.schema == BATCH
    rows = batch([event(str(at), user_id="u", properties=json.dumps({"email": at})) for at in range(6)])
    whole = stage.protect(rows, NOON_US).batch
    parts = [stage.protect(rows.slice(at, 2), NOON_US).batch for at in (0, 2, 4)]
    assert pa.Table.from_batches(parts).to_pylist() == whole.to_pylist()


def test_settings_travel_and_hold_no_secret():
    assert "the second secret" not in repr(settings(RULES))
    assert "the second secret" not in repr(vars(Protection(settings(RULES))))

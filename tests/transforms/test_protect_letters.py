"""Protect letters: whatever could not be read, no whole address gets into the dead letters, and no listed field."""

import gzip
import json
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.schemas import dead_letter
from millrace.transforms import protect_letters
from millrace.transforms.decode import decode_envelopes
from tests.support.decoding import NOW_US, body, decode, envelope, event
from tests.support.privacy import keys, protection, set_secrets
from tests.transforms.test_decode_hostile import BAD_BODIES, BAD_EVENTS, mutated

IP = "203.0.113.77"
KEPT = "203.0.113.0"
KEYS = keys()
TRUNCATE = "field: context_ip, policy: truncate"
HASH_EMAIL = "field: properties.email, policy: hash"


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    set_secrets(monkeypatch)


def letters(rules: list[str], *bodies: Any, more: str = "", **attributes: str) -> list[dict[str, Any]]:
    """Return the protected dead letters of bodies, one envelope each."""
    found = decode(*bodies, **attributes).letters
    protected = protection(rules, more).protect_letters(found)
    assert protected.schema == dead_letter.BATCH
    before, after = found.to_pylist(), protected.to_pylist()
    changed = {"payload", "attributes", "message"}
    assert [{k: v for k, v in row.items() if k not in changed} for row in after] == [
        {k: v for k, v in row.items() if k not in changed} for row in before
    ]
    return sorted(after, key=lambda row: (row["envelope_id"], row["envelope_index"]))


def payload(rules: list[str], sent: Any, more: str = "", **attributes: str) -> bytes:
    (letter,) = letters(rules, sent, more=more, **attributes)
    kept: bytes = letter["payload"]
    return kept


def raw(value: str, context: str = "") -> bytes:
    """Return an event without a user, so a dead letter; the value is what stands behind `ip`."""
    return f'{{"type":"track",  "context":{{"ip":{value}{context}}}}}'.encode()


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (f'"{IP}"', f'"{KEPT}"'),
        ('"2001:db8:1:2::3"', '"2001:db8:1::"'),
        ('"\\u0032\\u00303.0.113.77"', f'"{KEPT}"'),
        ('"at home"', "null"),
        ("null", "null"),
        ("3405803853", "null"),
        (f'["{IP}",{{"a":["{IP}"]}}]', "null"),
        (f'{{"v4":"{IP}"}}', "null"),
        ("true", "null"),
    ],
)
def test_an_address_is_cut_and_all_other_bytes_stay(value: str, kept: str):
    assert payload([TRUNCATE], raw(value)) == raw(kept)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f'{{"\\u0069p" : "{IP}", "a":NaN', f'{{"\\u0069p" : "{KEPT}", "a":NaN'),
        (f'{{"context":{{"i\\u0070":\n"{IP}"', f'{{"context":{{"i\\u0070":\n"{KEPT}"'),
        (f'{{"ip":"{IP}', f'{{"ip":"{KEPT}'),
        (f'{{"ip":["{IP}', '{"ip":null'),
        (f'"{{\\"context\\":{{\\"ip\\":\\"{IP}\\"}}}}"', f'"{{\\"context\\":{{\\"ip\\":\\"{KEPT}\\"}}}}"'),
        (f'"\\\\\\"ip\\\\\\":\\\\\\"{IP}\\\\\\""', f'"\\\\\\"ip\\\\\\":\\\\\\"{KEPT}\\\\\\""'),
        (f'{{"batch":{{"ip":"{IP}"}},"ip":"{IP}"}}x', f'{{"batch":{{"ip":"{KEPT}"}},"ip":"{KEPT}"}}x'),
        (f'{{"zip":"{IP}","ship":"{IP}"}}', f'{{"zip":"{IP}","ship":"{IP}"}}'),
    ],
)
def test_an_address_is_found_in_a_broken_text(text: str, kept: str):
    assert payload([TRUNCATE], text.encode()) == kept.encode()


@pytest.mark.parametrize("policy", ["drop", "truncate", "hash", "encrypt"])
def test_the_attribute_of_the_request_has_the_policy_of_the_column(policy: str):
    (letter,) = letters([f"field: context_ip, policy: {policy}"], b"oops", ip=IP, source_id="shop")
    left = {"drop": {}, "truncate": {"ip": KEPT}, "hash": {"ip": KEYS.hash(IP)}, "encrypt": {"ip": KEYS.encrypt(IP)}}
    assert json.loads(letter["attributes"]) == {"source_id": "shop", **left[policy]}
    assert letters(["field: context_ip, policy: drop"], b"oops", ip=IP)[0]["attributes"] is None


def test_a_rule_for_a_source_is_for_its_letters():
    rules = ["field: context_ip, policy: keep, sources: [office]", TRUNCATE]
    for source, kept in (("office", IP), ("shop", KEPT)):
        (letter,) = letters(rules, raw(f'"{IP}"'), ip=IP, source_id=source)
        assert (letter["payload"], json.loads(letter["attributes"])["ip"]) == (raw(f'"{kept}"'), kept)


def hostile() -> list[tuple[str, bytes, dict[str, str]]]:
    """Return every payload of decode's hostile tests, with an address in it where it has room for one."""
    found: list[tuple[str, bytes, dict[str, str]]] = []
    for name, (bad, _) in BAD_EVENTS.items():
        found.append((name, b'[{"context":{"ip":"%b"}},%b]' % (IP.encode(), bad), {}))
        if bad.startswith(b"{"):
            found.append((f"{name}, inside", b'{"context":{"ip":"%b"},%b' % (IP.encode(), bad[1:]), {}))
    for name, (bad, attributes, _) in BAD_BODIES.items():
        found.append((name, bad, attributes))
        text = b'{"context":{"ip":"%b"},"batch":[{}]}' % IP.encode()
        if "gzip" in name or attributes:
            packed = gzip.compress(text)
            found += [(f"{name}, {cut} cut", packed[: len(packed) - cut], attributes) for cut in (0, 1, 9)]
        else:
            found.append((f"{name}, behind", text + bad, attributes))
    text = b'{"context":{"ip":"%b"}}' % IP.encode()
    found += [(name, text.decode().encode(name), {}) for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32-le")]
    found += [("zlib", zlib.compress(text), {}), ("zlib as br", zlib.compress(text, 0), {"content_encoding": "br"})]
    return found


HOSTILE = hostile()


@pytest.mark.parametrize("number", range(len(HOSTILE)), ids=[name for name, _, _ in HOSTILE])
@pytest.mark.parametrize("policy", ["truncate", "drop"])
def test_no_hostile_payload_brings_a_whole_address_into_the_dead_letters(number: int, policy: str):
    _, sent, attributes = HOSTILE[number]
    found = letters([f"field: context_ip, policy: {policy}"], sent, ip=IP, **attributes)
    for letter in found:
        plain = letter["payload"]
        if plain[:2] == b"\x1f\x8b":
            plain = zlib.decompressobj(wbits=31).decompress(plain, 20_000_000)
        for text in (plain, plain.replace(b"\x00", b""), letter["attributes"] or "", letter["message"]):
            assert IP not in (text if isinstance(text, str) else text.decode("latin-1"))


@settings(max_examples=300, deadline=None)
@given(st.lists(mutated(), min_size=1, max_size=4), st.sampled_from([{}, {"content_encoding": "gzip"}]))
def test_no_bytes_raise_and_no_letter_is_lost(bodies: list[bytes], attributes: dict[str, str]):
    found = decode(*bodies, ip=IP, **attributes).letters
    with pytest.MonkeyPatch.context() as patch:
        set_secrets(patch)
        stage = protection([TRUNCATE, HASH_EMAIL, "field: user_id, policy: hash", "field: traits, policy: drop"])
    protected = stage.protect_letters(found)
    protected.validate(full=True)
    assert protected.column("receipt") == found.column("receipt")
    assert stage.protect_letters(protected).column("payload") == protected.column("payload")


@pytest.mark.parametrize(
    "attack",
    [b'"ip":' * 1_000_000, b'"ip":"' * 1_000_000, b'"ip":[' * 500_000, b'"ip":\\' + b"\\" * 4_000_000,
     b'"ip"' + b"\x00" * 4_000_000, b'"' + b"\x00" * 4_000_000 + b"ip", b'"ip":"' + b"\\" * 4_000_000,
     b'"ip":' + b" " * 4_000_000, b"[" * 4_000_000, b'{"batch":' * 400_000],
)  # fmt: skip
def test_a_hostile_text_costs_no_more_than_its_length(attack: bytes):
    started = time.process_time()
    payload([TRUNCATE, HASH_EMAIL], attack)
    assert time.process_time() - started < 20  # quadratic would be hours


def test_bytes_in_which_nothing_can_be_found_are_removed_and_the_letter_says_so():
    cut = gzip.compress(raw(f'"{IP}"'))[:-9]
    (letter,) = letters([TRUNCATE], cut, content_encoding="gzip")
    assert letter["payload"] == b""
    assert letter["message"].endswith(" (the payload was removed: privacy)")
    assert payload([TRUNCATE], cut, "unreadable: keep\n", content_encoding="gzip") == cut
    assert payload([], cut, content_encoding="gzip") == cut


def test_a_packed_body_is_packed_again():
    sent = gzip.compress(raw(f'"{IP}"')[:-1])
    kept = payload([TRUNCATE], sent, content_encoding="gzip")
    assert gzip.decompress(kept) == raw(f'"{KEPT}"')[:-1]
    clean = gzip.compress(b"[{]")
    assert payload([TRUNCATE], clean, content_encoding="gzip") == clean


RULES = [
    HASH_EMAIL,
    "field: user_id, policy: hash",
    "field: context_page_title, policy: drop",
    "field: traits.phone, policy: drop",
]
PRIVATE = {
    "type": "trakc",
    "userId": "ann",
    "context": {"page": {"title": "Ann's", "path": "/"}, "traits": {"phone": 12, "plan": "pro"}},
    "properties": {"email": "a@b", "nested": {"email": "kept"}},
    "traits": {"phone": 34},
}
LEFT = {
    "type": "trakc",
    "userId": KEYS.hash("ann"),
    "context": {"page": {"path": "/"}, "traits": {"plan": "pro"}},
    "properties": {"email": KEYS.hash("a@b"), "nested": {"email": "kept"}},
    "traits": {},
}


def test_a_readable_payload_is_protected_by_the_paths():
    assert json.loads(payload(RULES, PRIVATE)) == LEFT
    # The collector's refusals are whole events.
    (letter,) = letters(RULES, PRIVATE | {"type": "track"}, rejected="type_not_allowed", rejected_because="no")
    assert (letter["stage"], json.loads(letter["payload"])) == ("collect", LEFT | {"type": "track"})


def test_so_is_a_whole_body_of_several():
    for whole, left in (([PRIVATE] * 2, [LEFT] * 2), ({"batch": [PRIVATE]}, {"batch": [LEFT]})):
        kept = payload(RULES, body(whole), rejected="too_large", rejected_because="", content_encoding="br")
        assert json.loads(kept) == left
    lines = body(PRIVATE) + b"\n" + body(PRIVATE)[:-1] + b"\n"
    first, second, _ = payload(RULES, lines, content_encoding="br").split(b"\n")
    assert json.loads(first) == LEFT
    assert json.loads(second + b"}") != LEFT  # broken off: by the keys alone


def test_in_a_broken_text_every_value_behind_such_a_key_is_replaced():
    kept = payload(RULES, body(PRIVATE)[:-1]).decode()
    for private in ('"ann"', "a@b", "kept", "Ann's", "12", "34"):
        assert private not in kept
    assert KEYS.hash("kept") in kept


def test_rules_for_some_events_count_for_all_letters_and_exceptions_do_not():
    rules = ["field: properties.email, policy: keep, events: [Bought]", HASH_EMAIL + ", events: [Sold]"]
    kept = json.loads(payload(rules, PRIVATE | {"event": "Bought"}))
    assert kept["properties"]["email"] == KEYS.hash("a@b")


@pytest.mark.parametrize(
    "named", [{"userId": "ann"}, {"userId": "x", "anonymousId": "ann"}, {"userId": KEYS.hash("ann")}]
)
def test_of_a_suppressed_user_s_letter_the_payload_is_removed(named: dict[str, str], tmp_path: Path):
    (tmp_path / "ids").write_text("ann\n")
    more = f"suppression: {{file: {tmp_path / 'ids'}}}\n"
    rules = ["field: user_id, policy: hash"]
    assert payload(rules, {"type": "trakc", **named}, more) == b""
    assert payload(rules, json.dumps({"type": "trakc", **named}).encode()[:-1], more) == b""
    assert payload([], {"type": "trakc", "userId": "bob"}, more) == b'{"type": "trakc", "userId": "bob"}'


def test_without_rules_letters_pass_as_they_came():
    found = decode_envelopes([envelope(b"oops", 0, ip=IP), envelope(event(type="x"), 1)], NOW_US).letters
    assert protection().protect_letters(found) is found


def test_a_payload_at_which_we_fail_is_removed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    def breaks(text: bytes, tree: Any) -> bytes:
        raise KeyError(text)

    monkeypatch.setattr(protect_letters, "rewrite", breaks)
    (letter,) = letters(RULES, PRIVATE)
    assert (letter["payload"], letter["message"].endswith("(the payload was removed: privacy)")) == (b"", True)
    assert "KeyError" in caplog.text
    assert "a@b" not in caplog.text

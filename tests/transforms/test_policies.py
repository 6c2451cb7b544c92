"""Policies: what is left of a value, the same each time and in each field, and nothing more of it."""

import hashlib
import hmac
import ipaddress
import pickle

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.config.privacy import Key, Path, Rule
from millrace.config.secrets import SecretError, SecretReference
from millrace.transforms.policies import CannotDecryptError, Keys, decrypt, on_json, on_text
from tests.support.privacy import SECRETS, keys

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
ADDRESSES = st.ip_addresses().map(str)
KEYS = keys()


def rule(policy: str, characters: int | None = None) -> Rule:
    return Rule(Path("properties", ("a",)), policy, characters)


RULES = [rule("truncate"), rule("truncate", 3), rule("hash"), rule("encrypt"), rule("keep"), rule("drop")]


def test_a_hash_is_the_hmac_that_anybody_with_the_secret_gets():
    expected = hmac.new(SECRETS["v2"].encode(), "änn".encode(), hashlib.sha256).hexdigest()
    assert on_text(rule("hash"), KEYS)("änn") == f"v2:{expected}"
    assert keys("v1").hash("änn") != keys("v2").hash("änn")


@given(TEXTS)
def test_what_is_encrypted_comes_back_and_is_the_same_each_time(text: str):
    sealed = KEYS.encrypt(text)
    assert sealed.startswith("v2:siv:")
    assert sealed == keys().encrypt(text)
    assert decrypt(sealed, KEYS) == text
    assert len(text) < 4 or text not in sealed


@given(TEXTS)
def test_after_a_rotation_the_old_is_read_and_the_new_is_written(text: str):
    old = keys("v1").encrypt(text)
    assert decrypt(old, KEYS) == text
    assert KEYS.encrypt(text).startswith("v2:")
    with pytest.raises(CannotDecryptError, match="with any of these keys"):
        decrypt(KEYS.encrypt(text), keys("v1"))
    assert KEYS.encryptions(text) == [KEYS.encrypt(text), old]
    assert KEYS.hashes(text) == [keys("v2").hash(text), keys("v1").hash(text)]


@given(st.data())
def test_a_changed_ciphertext_is_refused(data: st.DataObject):
    sealed = KEYS.encrypt("ann@example.com")
    at = data.draw(st.integers(len("v2:siv:"), len(sealed) - 2))  # of the last character two bits mean nothing
    other = data.draw(st.sampled_from("ABCxyz019-_=!é\n").filter(lambda each: each != sealed[at]))
    with pytest.raises(CannotDecryptError) as caught:
        decrypt(sealed[:at] + other + sealed[at + 1 :], KEYS)
    assert "ann" not in str(caught.value)


@pytest.mark.parametrize("value", ["", "v2:siv:", "ann", "v9:siv:AAAA", "v2:AAAA", "v1:siv:é"])
def test_what_was_not_encrypted_is_not_decrypted(value: str):
    with pytest.raises(CannotDecryptError):
        decrypt(value, KEYS)


@pytest.mark.parametrize("each", RULES, ids=str)
@given(text=TEXTS | ADDRESSES)
def test_protecting_twice_is_protecting_once(each: Rule, text: str):
    once = on_text(each, KEYS)(text)
    assert once is None or on_text(each, KEYS)(once) == once
    if each.policy in ("hash", "encrypt"):  # after a rotation, too
        before = on_text(each, keys("v1"))(text)
        assert before is not None
        assert on_text(each, KEYS)(before) == before


@given(ADDRESSES)
def test_of_an_address_its_network_is_left(text: str):
    left = on_text(rule("truncate"), KEYS)(text)
    assert left is not None
    given_, kept = ipaddress.ip_address(text), ipaddress.ip_address(left)
    if isinstance(given_, ipaddress.IPv6Address) and given_.ipv4_mapped:
        given_ = given_.ipv4_mapped
    bits = 24 if given_.version == 4 else 48
    assert kept == ipaddress.ip_network(f"{given_}/{bits}", strict=False).network_address


@pytest.mark.parametrize("text", ["", "here", "203.0.113", "203.0.113.256", "x" * 1_000])
def test_of_what_is_no_address_nothing_is_left(text: str):
    assert on_text(rule("truncate"), KEYS)(text) is None


def test_a_text_is_cut_by_characters():
    assert on_text(rule("truncate", 3), KEYS)("Ä☕😀x") == "Ä☕😀"


@pytest.mark.parametrize(
    ("policy", "value", "left"),
    [
        (rule("truncate", 2), b'"abc"', b'"ab"'),
        (rule("truncate", 2), b"1234", b'"12"'),
        (rule("truncate", 2), b'["abc"]', b"null"),
        (rule("truncate", 2), b'{"a":1}', b"null"),
        (rule("truncate"), b'"203.0.113.9"', b'"203.0.113.0"'),
        (rule("truncate"), b'"\\u0032\\u00303.0.113.9"', b'"203.0.113.0"'),
        (rule("truncate"), b"3405803777", b"null"),
        (rule("keep"), b'"abc"', b'"abc"'),
        (rule("drop"), b'"abc"', None),
        *[(each, b"null", b"null") for each in RULES[:-1]],
    ],
)
def test_what_is_left_of_a_json_value(policy: Rule, value: bytes, left: bytes | None):
    assert on_json(policy, KEYS)(value) == left


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_json_text_is_hashed_as_the_column_of_the_same_text(text: str):
    value = on_json(rule("hash"), KEYS)(msgspec.json.encode(text))
    assert value == msgspec.json.encode(KEYS.hash(text))


@pytest.mark.parametrize("value", [b"491512345", b"true", b'{"a": 1}', b"[]"])
def test_of_other_json_the_text_is_hashed_or_encrypted(value: bytes):
    assert on_json(rule("hash"), KEYS)(value) == msgspec.json.encode(KEYS.hash(value.decode()))
    sealed = on_json(rule("encrypt"), KEYS)(value)
    assert sealed is not None
    assert decrypt(msgspec.json.decode(sealed), KEYS) == value.decode()


def test_a_short_secret_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MILLRACE_TEST_KEY", "hunter2")
    with pytest.raises(SecretError, match="fewer than 16 bytes: make one with `openssl") as caught:
        Keys.load([Key("v1", SecretReference("env", "MILLRACE_TEST_KEY"))])
    assert "hunter2" not in str(caught.value)


def test_keys_show_their_versions_and_are_not_pickled():
    assert repr(KEYS) == "Keys(v2, v1)"
    with pytest.raises(TypeError, match="load them"):
        pickle.dumps(KEYS)

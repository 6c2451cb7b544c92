"""Write keys: what they look like, what is kept of them, how long they hold."""

import datetime as dt
import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.collector.keys import PLAIN_KEY, Kind, StoredKey, hash_key, new_key, stored

NOON = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)
NOON_US = int(NOON.timestamp()) * 1_000_000


@pytest.mark.parametrize(("kind", "begins"), [(Kind.BROWSER, "mrb_"), (Kind.MOBILE, "mrm_"), (Kind.SERVER, "mrs_")])
def test_a_new_key_says_its_kind_and_is_random_for_the_rest(kind, begins):
    keys = {new_key(kind) for _ in range(100)}
    assert len(keys) == 100
    assert all(re.fullmatch(begins + "[A-Za-z0-9]{36}", key) for key in keys)
    assert all(PLAIN_KEY.search(f"  key: {key}") for key in keys)


def test_what_is_kept_of_a_key_is_its_beginning_and_its_hash():
    key = "mrs_0123456789abcdefghijklmnopqrstuvwxyz"
    assert stored(key, NOON) == StoredKey("mrs_0123", hashlib.sha256(key.encode()).digest(), NOON)
    assert key not in repr(stored(key))


@given(st.text(max_size=60))
def test_only_the_key_itself_matches(other):
    key = new_key(Kind.SERVER)
    assert stored(key).matches(key)
    assert not stored(key).matches(other)


def test_half_a_surrogate_pair_is_no_key_and_no_failure():
    assert len(hash_key("\ud800")) == 32


def test_a_key_holds_until_its_moment_and_not_at_it():
    key = stored("k" * 30, NOON)
    assert [key.valid_at(NOON_US + offset) for offset in (-1, 0, 1)] == [True, False, False]
    assert stored("k" * 30).valid_at(2**62)


@pytest.mark.parametrize(
    ("key", "because"),
    [
        ("short-secret-value", "a write key has 20 to 200 characters, this has 18"),
        ("k" * 201, "a write key has 20 to 200 characters, this has 201"),
        ("with:colon-with-colon-1", "a write key may hold letters, digits and . _ ~ - only"),
        ("über-geheim-über-geheim", "a write key may hold letters, digits and . _ ~ - only"),
    ],
)
def test_what_cannot_be_a_key_is_refused_without_repeating_it(key, because):
    with pytest.raises(ValueError, match=re.escape(because)) as caught:
        stored(key)
    assert key not in str(caught.value)

"""Write keys: made from random characters, kept as SHA-256, compared in constant time.

A key is `mrb_` (browser), `mrm_` (mobile) or `mrs_` (server) and 36 random letters and digits, some 214 bits. Nobody
can guess that, so one fast SHA-256 protects it: salt and stretching (bcrypt, argon2) are for what people choose, and
would cost every request milliseconds here. The first 8 characters are kept in the clear, to find the entry at once and
to let a person tell keys apart; the other 32, 190 bits, remain the secret.
"""

import dataclasses
import datetime as dt
import hashlib
import hmac
import re
import secrets
import string
from enum import Enum

BEGINS_CHARACTERS = 8
RANDOM_CHARACTERS = 36
SHORTEST = 20
"""Of a key made elsewhere: what its hidden part of 12 letters and digits has is some 71 bits."""
LONGEST = 200
"""A longer value is no key; nothing of it is hashed."""

_ALPHABET = string.ascii_letters + string.digits
PLAIN_KEY = re.compile(r"\bmr[bms]_[A-Za-z0-9]{12,}")
"""What looks like a key of ours in plain text."""


class Kind(Enum):
    """Where a source's events come from, and so whether its key can be a secret."""

    BROWSER = "browser"  # the key is public: it stands in the page. Origins say which pages may use it
    MOBILE = "mobile"  # the key is public: it stands in the app. Apps send no Origin, so pages may not use it
    SERVER = "server"  # the key is a secret: never in a URL, never in a page


@dataclasses.dataclass(frozen=True, slots=True)
class StoredKey:
    """What is kept of one write key."""

    begins: str
    """Its first 8 characters; public."""
    sha256: bytes
    until: dt.datetime | None = None
    """Not valid from this moment on, with a zone; None: valid as long as it is listed."""

    def matches(self, key: str) -> bool:
        """Say whether this is the key, in a time that tells nothing of it."""
        return hmac.compare_digest(hash_key(key), self.sha256)

    def valid_at(self, now_us: int) -> bool:
        """Say whether it has not ended at now_us (µs since the epoch)."""
        return self.until is None or now_us < self.until.timestamp() * 1_000_000


def new_key(kind: Kind) -> str:
    """Make a write key of the operating system's randomness."""
    return f"mr{kind.value[0]}_" + "".join(secrets.choice(_ALPHABET) for _ in range(RANDOM_CHARACTERS))


def hash_key(key: str) -> bytes:
    """Give the SHA-256 of a key, in UTF-8; any text is allowed."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def stored(key: str, until: dt.datetime | None = None) -> StoredKey:
    """Give what is kept of a key.

    Raises:
        ValueError: the key cannot be one; says why, and does not hold the key.
    """
    if not SHORTEST <= len(key) <= LONGEST:
        raise ValueError(f"a write key has {SHORTEST} to {LONGEST} characters, this has {len(key)}")
    if not re.fullmatch(r"[A-Za-z0-9._~-]+", key):
        raise ValueError("a write key may hold letters, digits and . _ ~ - only, so that it needs no escape in a URL")
    return StoredKey(key[:BEGINS_CHARACTERS], hash_key(key), until)

"""Policies: what is left of one value that may not be kept as it is, with the keys that hash and encrypt.

    hash     v2:<64 hexadecimal digits>  HMAC-SHA256 of the UTF-8 text, keyed with the secret of version v2 as it is:
                                         `printf %s TEXT | openssl dgst -sha256 -hmac SECRET` gives the same
    encrypt  v2:siv:<base64url>          AES-SIV (RFC 5297) under a key derived from the secret (HKDF-SHA256)

Both are deterministic, so that joins, copies and replays still work, in every field alike. What is protected already
stays as it is: protecting twice is protecting once.
"""

import base64
import binascii
import functools
import hmac
import re
from collections.abc import Callable, Sequence
from typing import NoReturn

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from millrace.collector.client_ip import IpPolicy, address, kept_ip
from millrace.config.privacy import Key, Rule
from millrace.config.secrets import Secret, SecretError

Protect = Callable[[str], str | None]
"""What is left of a text; None: nothing."""
ProtectJson = Callable[[bytes], bytes | None]
"""What is left of a JSON value; None: not even its name."""

MIN_SECRET_BYTES = 16
REMEMBERED = 65_536
"""Distinct values of which each field remembers what is left; the ones used least go first."""

_SIV = "siv:"
_DERIVED_FOR = b"millrace encrypt"
_SIV_KEY_BYTES = 64

encode = msgspec.json.Encoder().encode
_text = msgspec.json.Decoder(str).decode


class CannotDecryptError(Exception):
    """A value was not encrypted with any of these keys. Does not hold the value."""


class Keys:
    """The versions of a job's key, the newest first. Not pickled: it holds secrets."""

    def __init__(self, secrets: Sequence[tuple[str, Secret]]) -> None:
        self._secrets = {version: secret.reveal() for version, secret in secrets}
        self._newest = next(iter(self._secrets), "")
        self._ciphers = {version: AESSIV(_derive(secret)) for version, secret in self._secrets.items()}
        self._hashed = re.compile(rf"(?:{'|'.join(self._secrets)}):[0-9a-f]{{64}}")

    @classmethod
    def load(cls, keys: Sequence[Key]) -> "Keys":
        """Resolve the secrets of a configuration.

        Raises:
            SecretError: one is missing or too short; one sentence that says what to do.
        """
        secrets = [(key.version, key.secret.resolve()) for key in keys]
        for key, (_, secret) in zip(keys, secrets, strict=True):
            if len(secret.reveal()) < MIN_SECRET_BYTES:
                raise SecretError(
                    f"the secret {key.secret} has fewer than {MIN_SECRET_BYTES} bytes: make one with "
                    "`openssl rand -base64 32`"
                )
        return cls(secrets)

    def __repr__(self) -> str:
        return f"Keys({', '.join(self._secrets)})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not pickled: load them where they are needed")

    def hash(self, text: str) -> str:
        """Return a text's hash under the newest key; a hash under any of these keys stays as it is."""
        return text if self._hashed.fullmatch(text) else self._hash(self._newest, text)

    def hashes(self, text: str) -> list[str]:
        """Return a text's hashes under every version."""
        return [self._hash(version, text) for version in self._secrets]

    def _hash(self, version: str, text: str) -> str:
        return f"{version}:{hmac.digest(self._secrets[version], text.encode(), 'sha256').hex()}"

    def encrypt(self, text: str) -> str:
        """Encrypt a text with the newest key; what is encrypted with any of these keys stays as it is."""
        try:
            self.decrypt(text)
        except CannotDecryptError:
            return self._encrypt(self._newest, text)
        return text

    def encryptions(self, text: str) -> list[str]:
        """Return a text encrypted under every version."""
        return [self._encrypt(version, text) for version in self._secrets]

    def _encrypt(self, version: str, text: str) -> str:
        sealed = self._ciphers[version].encrypt(text.encode(), [version.encode()])
        return f"{version}:{_SIV}{base64.urlsafe_b64encode(sealed).decode().rstrip('=')}"

    def decrypt(self, value: str) -> str:
        """Return the text that was encrypted: under whichever version the value names.

        Raises:
            CannotDecryptError: it was not, or not with these keys, or it was changed.
        """
        version, _, sealed = value.partition(f":{_SIV}")
        cipher = self._ciphers.get(version)
        if cipher is None or not sealed:
            raise CannotDecryptError("not encrypted with any of these keys")
        try:
            raw = base64.b64decode(sealed + "=" * (-len(sealed) % 4), altchars=b"-_", validate=True)
            return cipher.decrypt(raw, [version.encode()]).decode()
        except (InvalidTag, ValueError, binascii.Error):
            raise CannotDecryptError(f"not encrypted with this key of version {version}, or changed since") from None


def decrypt(value: str, keys: Keys) -> str:
    """Return the text behind a value that the policy `encrypt` wrote; see Keys.decrypt.

    Raises:
        CannotDecryptError: these keys did not encrypt it.
    """
    return keys.decrypt(value)


def _derive(secret: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=_SIV_KEY_BYTES, salt=None, info=_DERIVED_FOR).derive(secret)


def truncate_ip(text: str) -> str | None:
    """Leave the network of an address: /24 of IPv4, /48 of IPv6; None where it is no address.

    >>> truncate_ip("192.0.2.77"), truncate_ip("2001:db8:1:2::3"), truncate_ip("here")
    ('192.0.2.0', '2001:db8:1::', None)
    """
    return kept_ip(address(text), IpPolicy.TRUNCATE)


def on_text(rule: Rule, keys: Keys) -> Protect:
    """Return what a rule does to a text; it remembers what it did last."""
    if rule.policy == "drop":
        return _nothing
    if rule.policy == "keep":
        return str
    if rule.policy == "hash":
        return functools.lru_cache(REMEMBERED)(keys.hash)
    if rule.policy == "encrypt":
        return functools.lru_cache(REMEMBERED)(keys.encrypt)
    if rule.characters is None:
        return functools.lru_cache(REMEMBERED)(truncate_ip)
    return functools.partial(_cut, characters=rule.characters)


def on_json(rule: Rule, keys: Keys) -> ProtectJson:
    """Return what a rule does to a JSON value: to a text what on_text does; others are taken as the text they are.

    `null` stays. Of an object or array nothing is left by truncate. Where nothing is left the value becomes null; drop
    removes it with its name.
    """
    if rule.policy == "drop":
        return _nothing
    if rule.policy == "keep":
        return bytes
    return functools.lru_cache(REMEMBERED)(
        functools.partial(_protected, of=on_text(rule, keys), whole=rule.policy != "truncate")
    )


def _protected(value: bytes, of: Protect, *, whole: bool) -> bytes:
    if value == b"null":
        return value
    if value[:1] == b'"':
        left = of(_text(value))
    elif value[:1] in b"{[" and not whole:
        left = None
    else:
        left = of(value.decode())
    return b"null" if left is None else encode(left)


def _nothing(_: object) -> None:
    return None


def _cut(text: str, characters: int) -> str:
    return text[:characters]

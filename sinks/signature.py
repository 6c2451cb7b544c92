"""Signature: who sent a request, and when; the scheme of Standard Webhooks 1.0, which has libraries in ten languages.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence

_PREFIX = b"whsec_"
_PLAIN_ID = re.compile(r"(?!sha256-|batch-)[!-\-/-~]{1,255}")  # no full stop, no blank, nothing but ASCII


def key_of(secret: bytes) -> bytes:
    """Return the key that a secret means: `whsec_` and base64, or any other bytes as they are.

    Raises:
        ValueError: it starts with whsec_, but what follows is no base64; or it is too short to be one.
    """
    if not secret.startswith(_PREFIX):
        key = secret
    else:
        try:
            key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
        except binascii.Error:
            raise ValueError("starts with whsec_, but base64 has to follow it") from None
    if len(key) < 16:
        raise ValueError("is too short to sign with: take 24 random bytes or more")
    return key


def request_id(message_ids: Sequence[str]) -> str:
    """Return the id of a request for these events: the same at every resend of the same events.

    It is the event's own id where there is one event and the id fits a header. Ids come from whoever sends events, so
    one with a full stop is hashed (it could move the border between id, timestamp and body in what is signed), and so
    is one that could be mistaken for a hash.

    >>> request_id(["m-1"])
    'm-1'
    """
    if len(message_ids) == 1:
        (only,) = message_ids
        if _PLAIN_ID.fullmatch(only):
            return only
        return f"sha256-{hashlib.sha256(only.encode(errors='surrogatepass')).hexdigest()}"
    digest = hashlib.sha256()
    for each in message_ids:
        text = each.encode(errors="surrogatepass")
        digest.update(b"%d:%b" % (len(text), text))
    return f"batch-{digest.hexdigest()}"


def signatures(keys: Sequence[bytes], request: str, sent_s: int, body: bytes) -> str:
    """Return the header `webhook-signature`: one for each key, so that a receiver can change keys at leisure."""
    signed = b"%b.%d.%b" % (request.encode(), sent_s, body)
    return " ".join("v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode() for key in keys)

"""Media: which content-types and content-encodings a body may have."""

from collections.abc import Mapping
from functools import lru_cache

from millrace.collector.answers import Code, Refusal

_JSON = frozenset(
    (
        "application/json",
        "text/plain",
        "text/json",
        "application/x-ndjson",
        "application/ndjson",
        "application/jsonl",
        "application/x-www-form-urlencoded",
        "",
    )
)
"""What a body of JSON calls itself. text/plain needs no preflight, so beacons and analytics.js send that.
RudderStack's Node SDK calls its gzip a form, since its HTTP client says so of any bytes; so does curl's -d."""
_UTF8 = frozenset(("utf-8", "utf8", "us-ascii", "ascii"))
_ENCODINGS = {b"": None, b"identity": None, b"gzip": "gzip", b"x-gzip": "gzip"}


def check_media(headers: Mapping[bytes, bytes]) -> None:
    """Refuse a body that does not call itself JSON in UTF-8. None at all is taken for JSON.

    Raises:
        Refusal: UNKNOWN_MEDIA_TYPE, UNKNOWN_CHARSET.
    """
    content_type = headers.get(b"content-type")
    if content_type:
        code = _fault(content_type[:512])
        if code is Code.UNKNOWN_MEDIA_TYPE:
            raise Refusal(code, "send application/json or text/plain; with curl: -H 'Content-Type: application/json'")
        if code is not None:
            raise Refusal(code, "send UTF-8")


def encoding_of(headers: Mapping[bytes, bytes]) -> str | None:
    """Return the body's encoding, gzip or None.

    Raises:
        Refusal: UNKNOWN_ENCODING.
    """
    encoding = headers.get(b"content-encoding")
    if encoding is None:
        return None
    try:
        return _ENCODINGS[encoding.strip().lower()]
    except KeyError:
        raise Refusal(Code.UNKNOWN_ENCODING, "content-encoding: gzip and identity are known") from None


@lru_cache(maxsize=256)  # few differ; one costs 2 µs to read
def _fault(content_type: bytes) -> Code | None:
    media, *parameters = content_type.decode("latin-1").split(";")
    if media.strip().lower() not in _JSON:
        return Code.UNKNOWN_MEDIA_TYPE
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip().strip("\"'").lower() not in _UTF8:
            return Code.UNKNOWN_CHARSET
    return None

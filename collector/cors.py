"""CORS: what a browser has to be told before it lets a page's script send, and read the answer.

Whether a source may be used from an origin is decided at the request itself, which has the key; a preflight has none.
So a preflight is granted to every origin, and refusals carry these headers too: an SDK that cannot read a 403 takes it
for a broken network, and tries again for hours.
"""

import re
from functools import lru_cache

from millrace.collector.answers import Answer, Headers
from millrace.collector.request import Request
from millrace.collector.routes import Route

_ORIGIN = re.compile(rb"[!-+\--~]{1,512}")
"""Printable, and no comma: two of them, joined, are none."""
_NAMES = re.compile(rb"[0-9A-Za-z!#$%&'*+.^_`|~, -]{1,2048}")

_SENT_BY_SDKS = (
    b"authorization, content-type, content-encoding, anonymousid, sentat, x-retry-count, rsa-recovered, "
    b"rsa-retry-attempt, rsa-since-last-attempt, rsa-since-first-attempt, rsa-retry-reason"
)
_VARY = (b"vary", b"origin")


@lru_cache(maxsize=256)
def cors_headers(origin: bytes | None) -> Headers:
    """Return what any answer to a request from this origin carries; None: the request named none.

    >>> dict(cors_headers(b"https://shop.example"))[b"access-control-allow-origin"]
    b'https://shop.example'
    """
    if origin is None or not _ORIGIN.fullmatch(origin):
        return (_VARY,)
    return (
        (b"access-control-allow-origin", origin),
        (b"access-control-allow-credentials", b"true"),  # sendBeacon always sends them; no cookie is read here
        (b"access-control-expose-headers", b"retry-after"),
        _VARY,
    )


def preflight(request: Request, route: Route, max_age_s: int) -> Answer:
    """Return the answer to OPTIONS: leave to send, where it is a preflight, else what the route allows."""
    allowed = route.allow.encode()
    headers = (*cors_headers(request.headers.get(b"origin")), (b"allow", allowed))
    if b"access-control-request-method" not in request.headers:
        return Answer(204, headers)
    asked = request.headers.get(b"access-control-request-headers", b"")
    # A page may add headers of its own to what the SDKs send, so whatever it asks for is granted.
    names = asked if _NAMES.fullmatch(asked) else _SENT_BY_SDKS
    headers += (
        (b"access-control-allow-methods", allowed),
        (b"access-control-allow-headers", names),
        (b"access-control-max-age", b"%d" % max_age_s),
        (b"vary", b"access-control-request-headers, access-control-request-private-network"),
    )
    if request.headers.get(b"access-control-request-private-network") == b"true":
        # A public page that sends to a collector in a private network, as on a laptop (WICG's Private Network Access).
        headers += ((b"access-control-allow-private-network", b"true"),)
    return Answer(204, headers)

"""Settings routes: what browser and mobile SDKs ask for before they send: where to, and what else to load (nothing).

What they read of these answers was taken from their sources: @rudderstack/analytics-js 3.34 wants `source` with `id`,
`config` and the list `destinations`; @segment/analytics-next 1.84 wants `integrations` with `Segment.io`, and loads the
code of every other one that stands there.
"""

import re

import msgspec

from millrace.collector.answers import JSON, Answer, Code, Headers, Refusal
from millrace.collector.credentials import check_origin, known, no_key, source_of_head
from millrace.collector.request import Request
from millrace.collector.routes import Route
from millrace.collector.sources import Sources

_HOST = re.compile(rb"[0-9A-Za-z._~\[\]:-]{1,255}")
# Short, as a source may be taken away; private, as a key stands in the request.
_CACHE = (b"cache-control", b"private, max-age=60")
_encode = msgspec.json.Encoder().encode


def source_config(request: Request, sources: Sources, now_us: int, headers: Headers) -> Answer:
    """Return RudderStack's settings of a source.

    HEAD needs no key: the SDK finds out with it whether an ad blocker is in the way.

    Raises:
        Refusal: NO_KEY, UNKNOWN_KEY, SECRET_KEY_IN_URL, ORIGIN_NOT_ALLOWED.
    """
    if request.method == "HEAD":
        return Answer(200, (JSON, _CACHE, *headers))
    source = source_of_head(request, sources, now_us)
    if source is None:
        raise no_key()
    if not source.key_is_public:
        raise Refusal(Code.UNKNOWN_KEY, "only sources of browsers and apps have settings to ask for")
    check_origin(request, source)
    off = {"enabled": False}
    told = {
        "source": {
            "id": source.id,
            "name": source.name,
            "enabled": True,
            "workspaceId": "millrace",
            "config": {"statsCollection": {"errors": off, "metrics": off}},
            "destinations": [],
            "connections": [],
            "dataplanes": {},
        }
    }
    return Answer(200, (JSON, _CACHE, *headers), _encode(told))


def project_settings(request: Request, route: Route, sources: Sources, now_us: int, headers: Headers) -> Answer:
    """Return Segment's settings of a source: send here, load nothing, report nothing.

    Raises:
        Refusal: UNKNOWN_PROJECT, BAD_HOST, ORIGIN_NOT_ALLOWED.
    """
    key = route.key or ""
    try:
        source = known(key, sources, now_us)
    except Refusal as refusal:
        raise Refusal(Code.UNKNOWN_PROJECT, refusal.message) from refusal
    if not source.key_is_public:
        raise Refusal(Code.UNKNOWN_PROJECT, "only sources of browsers and apps have settings to ask for")
    check_origin(request, source)
    host = request.headers.get(b"host", b"")
    if not _HOST.fullmatch(host):
        raise Refusal(Code.BAD_HOST, "no Host header that could be told to the SDK to send to")
    ours = {"apiKey": key, "apiHost": f"{host.decode()}/v1", "protocol": request.scheme}
    told = {"integrations": {"Segment.io": ours}, "metrics": {"sampleRate": 0}}
    return Answer(200, (JSON, _CACHE, *headers), _encode(told))

"""Calls: the shop's bodies as the HTTP requests that its SDKs make of them, and what the answers say became of them."""

import base64
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from millrace.local.catalogue import SHOP_URL
from millrace.local.send import Request
from millrace.local.shop import Sent
from millrace.schemas.dead_letter import Reason
from millrace.schemas.envelope import CONTENT_ENCODING, IP, SOURCE_ID, USER_AGENT

BEACON = "/beacon/v1/batch"

_TEXT = frozenset(("/v1/i", "/v1/t", "/v1/p", "/v1/s", "/v1/g", "/v1/a", BEACON))
"""Where browsers send text/plain, which needs no preflight: analytics.js, and beacons."""


class Call(NamedTuple):
    """One POST."""

    path: str
    headers: Mapping[str, str]
    body: bytes


class Answer(NamedTuple):
    """What came back."""

    status: int
    body: bytes


class _Verdict(msgspec.Struct):
    reason: str


class _Told(msgspec.Struct):
    rejected: list[_Verdict] = []


_told = msgspec.json.Decoder(_Told).decode


def call_of(sent: Sent, keys: Mapping[str, str]) -> Call:
    """Return the request for a body of the shop.

    Args:
        sent: what the shop hands out.
        keys: the write key of each source.
    """
    attributes, path = sent.attributes, sent.path
    key = keys[attributes[SOURCE_ID]]
    headers = {
        "content-type": "text/plain;charset=UTF-8" if path in _TEXT else "application/json",
        "user-agent": attributes[USER_AGENT],
        "x-forwarded-for": attributes[IP],
    }
    if attributes[SOURCE_ID] == "web":
        headers["origin"] = SHOP_URL
    if CONTENT_ENCODING in attributes:
        headers["content-encoding"] = attributes[CONTENT_ENCODING]
    if path == BEACON:  # a beacon can carry no header of its own
        path = f"{path}?writeKey={key}"
    else:
        headers["authorization"] = "Basic " + base64.b64encode(f"{key}:".encode()).decode()
    return Call(path, headers, sent.body)


def is_kept(answer: Answer) -> bool:
    """Say whether an answer promises that all records of the body will be found in the tables.

    Those of a 200 will; those of a 400 that lists them will be dead letters, but for a body without any.
    """
    if answer.status == 200:
        return True
    if answer.status != 400:
        return False
    try:
        verdicts = _told(answer.body).rejected
    except msgspec.DecodeError:
        return False
    return any(verdict.reason != Reason.EMPTY.value for verdict in verdicts)


class ShopCalls:
    """The shop's bodies, each a request of its own. `tag`: the body, a `Sent`."""

    least = 1

    def __init__(self, shop: Iterator[Sent], keys: Mapping[str, str]) -> None:
        """Send what a shop hands out, each source with its write key."""
        self._shop = shop
        self._keys = keys

    def take(self, events: int) -> Request:  # noqa: ARG002  a body is what it is
        """Return the next body's request."""
        sent = next(self._shop)
        return Request(call_of(sent, self._keys), 1, sent.events, sent)

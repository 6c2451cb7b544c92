"""Messages: one request's events as Pub/Sub messages: the body as it came, and beside it what the server knows.

Every event of an accepted request is in exactly one message. Refused ones travel apart, by reason, for decode to make
dead letters of; with the bytes that they came with.
"""

import datetime as dt
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import msgspec

from millrace.collector.answers import Verdict
from millrace.collector.call import Call, Sent
from millrace.collector.client_ip import IpPolicy, Network, client_ip, kept_ip
from millrace.collector.message import Message
from millrace.collector.sources import Source
from millrace.collector.verdicts import Judged
from millrace.schemas import envelope
from millrace.schemas.dead_letter import Reason, Rejected
from millrace.transforms.unpack import split_events

ATTRIBUTE_BYTES = 1_024
"""Pub/Sub's limit for an attribute's value."""
SCHEMA_VERSION = "1"


def attributes_of(call: Call, source: Source) -> dict[str, str]:
    """Return what the server knows of a request, as a message's attributes; of the address only what may be kept."""
    headers = call.request.headers
    attributes = {
        envelope.SOURCE_ID: source.id,
        envelope.RECEIVED_AT: iso_time(call.now_us),
        envelope.SCHEMA_VERSION: SCHEMA_VERSION,
        envelope.REQUEST_ID: call.request_id,
    }
    forwarded_for = headers.get(b"x-forwarded-for", b"")
    ip = _kept_ip(call.request.peer, forwarded_for, call.sources.trusted_proxies, source.ip_policy)
    if ip is not None:
        attributes[envelope.IP] = ip
    agent = headers.get(b"user-agent")
    if agent:
        attributes[envelope.USER_AGENT] = attribute(agent)
    if call.route.event_type is not None:
        attributes[envelope.EVENT_TYPE] = call.route.event_type
    return attributes


def whole(sent: Sent, attributes: Mapping[str, str], events: int) -> Message:
    """Return a body as it came as one message."""
    if sent.encoding is not None:
        attributes = {**attributes, envelope.CONTENT_ENCODING: sent.encoding}
    return Message(sent.body, attributes, events)


def refused_whole(sent: Sent, attributes: Mapping[str, str], rejected: Rejected, events: int) -> Message:
    """Return a body of which nothing is good, for one reason."""
    return whole(sent, {**attributes, **_because(rejected.reason, rejected.message)}, events)


def sorted_out(sent: Sent, attributes: Mapping[str, str], judged: Judged) -> list[Message]:
    """Return the messages of a body in which some events are refused: the good ones first."""
    by_fault: dict[tuple[Reason, str], list[Verdict]] = defaultdict(list)
    for verdict in judged.refused:
        by_fault[verdict.reason, verdict.message].append(verdict)
    if len(judged.refused) == judged.events and len(by_fault) == 1:
        (reason, message), verdicts = by_fault.popitem()
        return [refused_whole(sent, attributes, Rejected(reason, message), len(verdicts))]
    messages = []
    bad = {verdict.place for verdict in judged.refused}
    good = [payload for index, payload in enumerate(judged.payloads) if index not in bad]
    if good:
        messages.append(Message(_batch(good, judged.shared), attributes, len(good)))
    for (reason, message), verdicts in by_fault.items():
        told = {**attributes, **_because(reason, message)}
        for text, events in _refused_texts([judged.payloads[verdict.place] for verdict in verdicts]):
            messages.append(Message(text, told, events))
    return messages


def attribute(value: bytes) -> str:
    r"""Return bytes of a client as an attribute's value: text without control characters, at most 1,024 bytes of it.

    >>> attribute(b"Mozilla/5.0\x00 (X11)")
    'Mozilla/5.0 (X11)'
    """
    text = value[:ATTRIBUTE_BYTES].decode(errors="replace")
    if not text.isprintable():
        text = "".join(character for character in text if unicodedata.category(character) not in ("Cc", "Cs"))
    if text.isascii():
        return text
    return text.encode()[:ATTRIBUTE_BYTES].decode(errors="ignore")


def iso_time(now_us: int) -> str:
    """Return a time as ISO 8601, to the microsecond.

    >>> iso_time(1_795_428_000_000_001)
    '2026-11-23T10:00:00.000001Z'
    """
    seconds, micros = divmod(now_us, 1_000_000)
    return f"{_iso_second(seconds)}.{micros:06d}Z"


@lru_cache(maxsize=4_096)  # of a client that sends again and again, as servers do; else some 6 µs a request
def _kept_ip(peer: str, forwarded_for: bytes, trusted: tuple[Network, ...], policy: IpPolicy) -> str | None:
    return kept_ip(client_ip(peer, forwarded_for.decode("latin-1"), trusted), policy)


@lru_cache(maxsize=4)
def _iso_second(seconds: int) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _because(reason: Reason, message: str) -> dict[str, str]:
    return {envelope.REJECTED: reason.value, envelope.REJECTED_BECAUSE: attribute(message.encode(errors="replace"))}


def _batch(payloads: Sequence[bytes], shared: Mapping[str, msgspec.Raw]) -> bytes:
    """Return events as a batch, with what the batch that they came in said of them."""
    members = [b'"batch":[%b]' % b",".join(payloads)]
    members += [b"%b:%b" % (msgspec.json.encode(key), bytes(value)) for key, value in shared.items()]
    return b"{%b}" % b",".join(members)


def _refused_texts(payloads: Sequence[bytes]) -> Iterator[tuple[bytes, int]]:
    """Give texts in which decode will find just these payloads, with how many are in each.

    What is no JSON cannot always be put into an array and be found again, so then each goes by itself.
    """
    together = b"[%b]" % b",".join(payloads)
    if _found_in(together) == list(payloads):
        yield together, len(payloads)
    else:
        for payload in payloads:
            alone = b"[%b]" % payload
            yield (alone if _found_in(alone) == [payload] else payload), 1


def _found_in(text: bytes) -> list[bytes] | None:
    try:
        return split_events(text).events
    except Rejected:
        return None

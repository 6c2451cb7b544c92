"""Verdicts: which of a body's events are good, and what is wrong with the others; the same as decode would find."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from millrace.collector.answers import Verdict
from millrace.collector.bodies import check_events, check_repairable, event_sizes
from millrace.collector.glance import Rules, count_good, is_good, is_plain
from millrace.schemas.dead_letter import Reason, Rejected
from millrace.transforms.check import check_text
from millrace.transforms.contexts import Contexts
from millrace.transforms.rescue import rescue_event
from millrace.transforms.unpack import split_events


class Judged(NamedTuple):
    """What a body's events turned out to be."""

    events: int
    """All of them."""
    refused: Sequence[Verdict] = ()
    payloads: Sequence[bytes] = ()
    """The bytes of every event, where any is refused."""
    shared: Mapping[str, msgspec.Raw] = {}
    """What the batch says of all its events, where any is refused."""
    oversized: int = 0
    """Good events larger than Limits.event_bytes_soft."""


def judge(text: bytes, rules: Rules) -> Judged:
    """Judge each event of a text.

    Raises:
        Refusal: TOO_MANY_EVENTS.
        Rejected: no single events can be told apart, or there are none.
    """
    limits = rules.limits
    oversized = 0
    if len(text) > limits.event_bytes_soft or len(text) > limits.event_bytes:
        sizes = event_sizes(text, limits)
        if sizes is None or max(sizes, default=0) > limits.event_bytes:
            return _judge_each(text, rules)
        oversized = sum(size > limits.event_bytes_soft for size in sizes)
    events = count_good(text, rules)
    if events is None:
        return _judge_each(text, rules)
    check_events(events, limits)
    return Judged(events, oversized=oversized)


def _judge_each(text: bytes, rules: Rules) -> Judged:
    check_repairable(text)
    payloads, shared = split_events(text)
    check_events(len(payloads), rules.limits)
    refused: list[Verdict] = []
    oversized = 0
    try:
        if shared:
            check_text(msgspec.json.encode(shared))
    except Rejected as rejected:
        refused = [Verdict(index, rejected.reason, rejected.message) for index in range(len(payloads))]
        return Judged(len(payloads), refused, payloads, shared)
    defaults = dict(shared)
    if rules.event_type:
        defaults.setdefault("type", msgspec.Raw(msgspec.json.encode(rules.event_type)))
    contexts = Contexts()  # for this body only: it forgets nothing by itself
    plain = is_plain(shared)
    for index, payload in enumerate(payloads):
        try:
            if not plain or not is_good(payload, rules):
                _judge_one(payload, defaults, rules, contexts)
            oversized += len(payload) > rules.limits.event_bytes_soft
        except Rejected as rejected:
            refused.append(Verdict(index, rejected.reason, rejected.message))
    if not refused:
        return Judged(len(payloads), oversized=oversized)
    return Judged(len(payloads), refused, payloads, shared, oversized)


def _judge_one(payload: bytes, defaults: dict[str, msgspec.Raw], rules: Rules, contexts: Contexts) -> None:
    """Refuse an event that is no good.

    Raises:
        Rejected: as rescue_event does; MESSAGE_ID_TOO_LONG, TYPE_NOT_ALLOWED.
    """
    event = rescue_event(payload, defaults, rules.limits.event_bytes, contexts).event
    most = rules.limits.message_id_characters
    if event.message_id is not None and len(event.message_id) > most:
        raise Rejected(Reason.MESSAGE_ID_TOO_LONG, f"{len(event.message_id)} characters, at most {most} are taken")
    if event.type not in rules.types:
        raise Rejected(Reason.TYPE_NOT_ALLOWED, f"this source may not send events of type {event.type}")

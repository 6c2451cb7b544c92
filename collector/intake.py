"""Intake: a request that brings events becomes messages and an answer."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from millrace.collector import answers
from millrace.collector.answers import Answer, Code, Refusal, Verdict
from millrace.collector.bodies import check_length, unpack
from millrace.collector.call import Call, Sent
from millrace.collector.credentials import check_origin, check_public, no_key, source_of_body, source_of_head
from millrace.collector.glance import Rules
from millrace.collector.media import check_media, encoding_of
from millrace.collector.message import Message
from millrace.collector.messages import attributes_of, refused_whole, sorted_out, whole
from millrace.collector.pixel import event_of_query
from millrace.collector.sources import Source
from millrace.collector.verdicts import judge
from millrace.schemas.dead_letter import Reason, Rejected


class Outcome(NamedTuple):
    """What became of a request."""

    answer: Answer
    """Send it once all messages are durable; at once where there are none."""
    messages: Sequence[Message] = ()
    source: Source | None = None
    """Whose they are, for rates.Buckets.take."""
    route: str = "other"
    """One of routes.NAMES, or `other`."""
    events: int = 0
    """Those in messages, rejected ones included: what the source's rate counts."""
    rejected: Mapping[str, int] = {}
    """Events by the value of their schemas.dead_letter.Reason."""
    oversized: int = 0
    """Accepted events over Limits.event_bytes_soft."""
    body_bytes: int = 0
    """Of the body, unpacked."""

    @property
    def source_id(self) -> str | None:
        """Whose the messages are."""
        return None if self.source is None else self.source.id


def take_body(call: Call) -> Outcome:
    """Take the events of a body.

    Raises:
        Refusal: of the head, the key, the origin, or a size.
    """
    request = call.request
    check_media(request.headers)
    encoding = encoding_of(request.headers)
    source = source_of_head(request, call.sources, call.now_us)
    if source is not None:  # in the order in which a head is judged
        check_origin(request, source)
    if not request.body and check_length(request.headers, call.limits) is None:
        raise Refusal(Code.LENGTH_REQUIRED, "no body, and no content-length that says so")
    if source is None:
        try:
            text = unpack(request.body, encoding, call.limits)
        except Rejected as rejected:
            raise no_key() from rejected
        source = source_of_body(text, call.sources, call.now_us)
        check_origin(request, source)
    return _take(call, source, Sent(request.body, encoding))


def take_query(call: Call) -> Outcome:
    """Take the event in an image's query. The answer is an image, whatever the status."""
    if call.request.method == "HEAD":  # asks whether there is an image, and sends nothing
        return Outcome(answers.image(Answer(200, call.cors)), route=call.route.name)
    try:
        body = event_of_query(call.request.query)
        source = source_of_head(call.request, call.sources, call.now_us)
        if source is None:
            source = source_of_body(body, call.sources, call.now_us)
        check_public(source)
        check_origin(call.request, source)
        outcome = _take(call, source, Sent(body, None))
    except Refusal as refusal:
        outcome = Outcome(answers.refused(refusal, call.cors), route=call.route.name)
    return outcome._replace(answer=answers.image(outcome.answer))


def _take(call: Call, source: Source, sent: Sent) -> Outcome:
    """Take the events of a source.

    Raises:
        Refusal: BODY_TOO_LARGE, TOO_MANY_EVENTS.
    """
    limits = call.limits.within(source.limits)
    attributes = attributes_of(call, source)
    try:
        text = unpack(sent.body, sent.encoding, limits)
        judged = judge(text, Rules(call.route.event_type, source.allowed_types, limits))
    except Rejected as rejected:
        return _refuse_whole(call, source, sent, attributes, rejected)
    answer = answers.success(call.cors)
    if not judged.refused:
        made = [whole(sent, attributes, judged.events)]
        return Outcome(answer, made, source, call.route.name, judged.events, {}, judged.oversized, len(text))
    if not limits.lenient:
        answer = answers.judged(judged.events - len(judged.refused), judged.refused, call.cors)
    made = sorted_out(sent, attributes, judged)
    by_reason = Counter(verdict.reason.value for verdict in judged.refused)
    return Outcome(answer, made, source, call.route.name, judged.events, by_reason, judged.oversized, len(text))


def _refuse_whole(call: Call, source: Source, sent: Sent, attributes: Mapping[str, str], rejected: Rejected) -> Outcome:
    """Refuse a body in which no events can be told apart; it is kept as one dead letter, unless nothing is in it."""
    answer = answers.judged(0, [Verdict(0, rejected.reason, rejected.message)], call.cors)
    made = [] if rejected.reason is Reason.EMPTY else [refused_whole(sent, attributes, rejected, 1)]
    return Outcome(answer, made, source, call.route.name, len(made), {rejected.reason.value: 1})

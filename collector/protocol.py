"""Protocol: one HTTP request becomes messages to deliver and an answer, or a refusal. Pure: no I/O, no clock."""

from millrace.collector import answers
from millrace.collector.answers import Answer, Code, Refusal
from millrace.collector.bodies import check_length
from millrace.collector.call import Call
from millrace.collector.cors import cors_headers, preflight
from millrace.collector.credentials import check_origin, source_of_head
from millrace.collector.intake import Outcome, take_body, take_query
from millrace.collector.limits import Limits
from millrace.collector.media import check_media, encoding_of
from millrace.collector.request import Request, headers_of
from millrace.collector.routes import Action, Route, find_route
from millrace.collector.settings_routes import project_settings, source_config
from millrace.collector.sources import Sources

__all__ = ["Answer", "Limits", "Outcome", "Request", "admit", "handle", "headers_of"]


def admit(head: Request, sources: Sources, now_us: int, limits: Limits) -> Answer | None:
    """Return the refusal of a request that can be told from its head; None where its body should be read.

    handle looks at all of this again, so what has come whole need not be admitted first.

    Args:
        head: with an empty body.
        sources: who may send.
        now_us: the collector's clock, µs since the epoch.
        limits: what a request may bring.
    """
    try:
        route = _routed(head)
        if route.action is Action.EVENTS and head.method == "POST":
            check_media(head.headers)
            encoding_of(head.headers)
            source = source_of_head(head, sources, now_us)
            if source is not None:
                check_origin(head, source)
                limits = limits.within(source.limits)
            check_length(head.headers, limits)
    except Refusal as refusal:
        return answers.refused(refusal, cors_headers(head.headers.get(b"origin")))
    return None


def handle(request: Request, sources: Sources, now_us: int, request_id: str, limits: Limits) -> Outcome:
    """Return what becomes of a request; no content of one raises.

    Args:
        request: with its whole body.
        sources: who may send.
        now_us: the collector's clock, µs since the epoch.
        request_id: unlike any other, at most 64 characters of [0-9A-Za-z_-].
        limits: what a request may bring.
    """
    cors = cors_headers(request.headers.get(b"origin"))
    try:
        route = _routed(request)
    except Refusal as refusal:
        return Outcome(answers.refused(refusal, cors))
    try:
        if request.method == "OPTIONS":
            return Outcome(preflight(request, route, limits.preflight_max_age_s), route=route.name)
        call = Call(request, route, sources, now_us, request_id, limits, cors)
        match route.action:
            case Action.EVENTS:
                return take_body(call)
            case Action.PIXEL:
                return take_query(call)
            case Action.SOURCE_CONFIG:
                return Outcome(source_config(request, sources, now_us, cors), route=route.name)
            case Action.PROJECT_SETTINGS:
                return Outcome(project_settings(request, route, sources, now_us, cors), route=route.name)
    except Refusal as refusal:
        return Outcome(answers.refused(refusal, cors), route=route.name)


def _routed(request: Request) -> Route:
    """Return the request's route.

    Raises:
        Refusal: UNKNOWN_ROUTE, METHOD_NOT_ALLOWED.
    """
    route = find_route(request.path)
    if route is None:
        raise Refusal(Code.UNKNOWN_ROUTE, "nothing is here; events go to POST /v1/batch, /v1/track and so on")
    if request.method not in route.methods:
        raise Refusal(Code.METHOD_NOT_ALLOWED, f"this route takes {route.allow}", (b"allow", route.allow.encode()))
    return route

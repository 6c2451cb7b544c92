"""The application: a request becomes an answer, and 200 is said only once its events are durable."""

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from millrace.collector import answers, demo
from millrace.collector.answers import Answer, Code, Refusal
from millrace.collector.client_ip import address
from millrace.collector.cors import cors_headers
from millrace.collector.delivery import Delivered, NotDurableError
from millrace.collector.health import Health
from millrace.collector.log import frames_of
from millrace.collector.message import Message
from millrace.collector.metrics import Metrics
from millrace.collector.protocol import Limits, Outcome, Request, admit, handle
from millrace.collector.rates import Buckets
from millrace.collector.routes import find_route
from millrace.collector.sources import Sources

log = structlog.get_logger(__name__)

_AFTER_A_BUG_S = 10.0
"""Retry-After of an answer to what nobody foresaw: long enough not to make it worse."""


class Delivery(Protocol):
    """What makes messages durable."""

    async def deliver(self, messages: Sequence[Message]) -> Delivered:
        """Return once all are durable. Raises NotDurableError."""
        ...


class App:
    """Answers the requests of one worker. No request makes it raise."""

    def __init__(
        self,
        sources: Sources,
        delivery: Delivery,
        limits: Limits,
        metrics: Metrics,
        health: Callable[[], Health],
        *,
        workers: int = 1,
        with_demo: bool = False,
    ) -> None:
        """Join the parts.

        Args:
            sources: who may send; may be set anew at any time.
            delivery: where the messages go.
            limits: what a request may bring.
            metrics: where to count.
            health: this worker's.
            workers: how many share the sources' rates.
            with_demo: serve the demo's page.
        """
        self.sources = sources
        self.body_bytes = limits.body_bytes
        self._delivery = delivery
        self._limits = limits
        self._metrics = metrics
        self._health = health
        self._buckets = Buckets(workers)
        self._with_demo = with_demo
        self._process = secrets.token_hex(8)  # no two processes have the same, so no two requests have
        self._count = 0

    def admit(self, head: Request) -> Answer | None:
        """Refuse what can be told from the head."""
        try:
            answer = None if self._page(head) else admit(head, self.sources, _now_us(), self._limits)
        except Exception as error:  # noqa: BLE001  a bug: let the body come, and `answer` say what there is to say
            self.failed(error)
            return None
        if answer is not None:
            self._count_refusal(head, answer)
        return answer

    def too_large(self, head: Request) -> Answer:
        """Return the refusal of a body that did not say how large it is, and is too large."""
        refusal = Refusal(Code.BODY_TOO_LARGE, f"at most {self.body_bytes} bytes are taken")
        answer = answers.refused(refusal, cors_headers(head.headers.get(b"origin")))
        self._count_refusal(head, answer)
        return answer

    async def answer(self, request: Request) -> Answer:
        """Answer a request."""
        began_s = time.perf_counter()
        self._count += 1
        request_id = f"{self._process}-{self._count:x}"
        route = "other"
        try:
            page = self._page(request)
            if page is not None:
                return page
            outcome = handle(_with_scheme(request, self.sources), self.sources, _now_us(), request_id, self._limits)
            route = outcome.route
            answer = await self._settle(outcome, len(request.body), request_id)
        except Exception as error:  # noqa: BLE001  a bug must not make an SDK drop its events: 503, and it tries again
            self.failed(error, request_id)
            answer = answers.unavailable(_AFTER_A_BUG_S, Answer(200, cors_headers(request.headers.get(b"origin"))))
        self._metrics.count_request(route, answer.status)
        self._metrics.answered_s.observe(time.perf_counter() - began_s)
        return answer

    def count(self, reason: str, status: int) -> None:
        """Count a request that the server ended by itself."""
        self._metrics.count_refused(reason)
        if status:
            self._metrics.count_request("none", status)

    def failed(self, error: BaseException, request_id: str = "") -> None:
        """Record a bug, without what the client sent."""
        self._metrics.failures.inc()
        log.error("a bug", request_id=request_id, error=type(error).__name__, where=frames_of(error))

    async def _settle(self, outcome: Outcome, wire_bytes: int, request_id: str) -> Answer:
        """Make a request's events durable, and return what it is told."""
        source = outcome.source
        if source is not None and outcome.events:
            wait_s = self._buckets.take(source, outcome.events, time.monotonic())
            if wait_s > 0:
                self._metrics.count_limited(source.id)
                return answers.too_many_requests(wait_s, outcome.answer)
        if outcome.messages:
            try:
                await self._delivery.deliver(outcome.messages)
            except NotDurableError as error:
                self._metrics.count_not_durable(error.reason.value)
                log.debug("not durable", request_id=request_id, reason=error.reason.value)
                return answers.unavailable(error.retry_after_s, outcome.answer)
        self._metrics.count_outcome(outcome, wire_bytes)
        return outcome.answer

    def _page(self, request: Request) -> Answer | None:
        """Return what is no event's: health, and the demo."""
        if request.method not in ("GET", "HEAD"):
            return None
        if request.path.startswith("/health/"):
            return self._health().answer(request.path)
        return demo.answer(request.path) if self._with_demo else None

    def _count_refusal(self, head: Request, answer: Answer) -> None:
        route = find_route(head.path)
        self._metrics.count_request(route.name if route else "other", answer.status)


def _with_scheme(request: Request, sources: Sources) -> Request:
    """Believe a trusted proxy that the client spoke HTTPS to it."""
    said = request.headers.get(b"x-forwarded-proto")
    peer = None if said is None else address(request.peer)
    if said is None or peer is None or not any(peer in network for network in sources.trusted_proxies):
        return request
    return request._replace(scheme="https" if said.rpartition(b",")[2].strip().lower() == b"https" else "http")


def _now_us() -> int:
    return time.time_ns() // 1_000

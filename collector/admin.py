"""The admin port, of the main process: metrics of all workers, and whether any of them serves."""

import asyncio

import msgspec
import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from millrace.collector.answers import JSON, NO_STORE, Answer
from millrace.collector.framing import plain
from millrace.collector.health import LIVE, READY
from millrace.collector.log import frames_of
from millrace.collector.metrics import CONTENT_TYPE, merged
from millrace.collector.request import Request
from millrace.collector.workers import Workers

log = structlog.get_logger(__name__)


class Admin:
    """Answers requests on the admin port."""

    body_bytes = 0

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    def admit(self, _head: Request) -> Answer | None:
        """Let all come."""
        return None

    def too_large(self, _head: Request) -> Answer:
        """Refuse any body."""
        return plain(413, "No body is taken here.")

    async def answer(self, request: Request) -> Answer:
        """Answer a request."""
        try:
            return await self._answer(request)
        except Exception as error:  # noqa: BLE001  whoever asks for metrics must not end the collector
            self.failed(error)
            return plain(503, "This went wrong; the log says how.")

    def count(self, _reason: str, _status: int) -> None:
        """Count nothing: strangers do not come here."""

    def failed(self, error: BaseException) -> None:
        """Log a bug."""
        log.error("a bug", error=type(error).__name__, where=frames_of(error))

    async def _answer(self, request: Request) -> Answer:
        if request.path not in (LIVE, READY, "/metrics"):
            return plain(404, f"There are {LIVE}, {READY} and /metrics.")
        if request.method not in ("GET", "HEAD"):
            return plain(405, "GET it.", [(b"allow", b"GET, HEAD")])
        if request.path == LIVE:
            return Answer(200, (JSON, NO_STORE), b'{"live":true}')
        reports = await self._workers.reports()
        if request.path == READY:
            ready = any(report is not None and report.ready for report in reports.values())
            said = {
                slot: "ready" if report and report.ready else report.why if report else "silent"
                for slot, report in reports.items()
            }
            return Answer(
                200 if ready else 503, (JSON, NO_STORE), msgspec.json.encode({"ready": ready, "workers": said})
            )
        pages = {str(slot): report.metrics for slot, report in reports.items() if report and report.metrics}
        own = [
            GaugeMetricFamily("millrace_collector_workers", "Workers that say how they are.", len(pages)),
            CounterMetricFamily(
                "millrace_collector_worker_restarts",
                "Workers that died and were replaced. Alert.",
                self._workers.restarts,
            ),
        ]
        # Parsing some hundred kilobytes takes a while, and signals come in here too.
        page = await asyncio.to_thread(merged, pages, own)
        return Answer(200, ((b"content-type", CONTENT_TYPE),), page)

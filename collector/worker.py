"""One worker process: `python -m millrace.collector.worker CONTROL_FD SOCKET_FD SLOT FIRST SETTINGS`."""

import asyncio
import contextlib
import gc
import signal
import socket
import sys
from pathlib import Path

import msgspec
import structlog
import uvloop
from google.auth.exceptions import GoogleAuthError

from millrace.collector.accepted import Accepted
from millrace.collector.app import App
from millrace.collector.control import Control, News, Order
from millrace.collector.deliver import Deliverer
from millrace.collector.delivery import DeliverySettings
from millrace.collector.health import Health, health_of, readings
from millrace.collector.listener import Listener
from millrace.collector.log import configure_logging
from millrace.collector.metrics import Metrics
from millrace.collector.publish import TopicPublisher
from millrace.collector.settings import Settings
from millrace.collector.sources import Sources, SourcesError
from millrace.collector.spool import Spool, SpoolError, SpoolVersionError
from millrace.collector.topic import problem_with_topic
from millrace.collector.unfit import UnfitFolder

log = structlog.get_logger(__name__)

_ADOPT_EVERY_S = 5.0
"""How long what a dead worker left may wait for another to take it over."""


class Worker:
    """Joins the parts of one process and ends them in order."""

    def __init__(self, settings: Settings, control: Control, listening: socket.socket) -> None:
        """Open the spool, read the sources. Nothing is accepted yet.

        Raises:
            SourcesError, SpoolError, SpoolVersionError: it cannot start.
        """
        self.metrics = Metrics()
        self._settings = settings
        self._control = control
        self._listening = listening
        self._ending = asyncio.Event()
        sources = Sources.load(settings.sources)
        self._spool = Spool(Path(settings.spool), max(1, settings.spool_max_bytes // settings.workers))
        self._accepted = Accepted(Path(settings.accepted)) if settings.accepted else None
        self._deliverer = Deliverer(
            TopicPublisher(settings.topic), self._spool, DeliverySettings(deadline_s=settings.publish_deadline_s),
            self.metrics.published_s.observe, set_aside=UnfitFolder(Path(settings.spool) / "unfit").keep,
            accepted=self._accepted,
        )  # fmt: skip
        self._app = App(
            sources, self._deliverer, settings.limits, self.metrics, self.health,
            workers=settings.workers, with_demo=settings.demo,
        )  # fmt: skip
        self._listener = Listener(self._app, settings.http)
        self.metrics.read(lambda: readings(self._deliverer.state(), self._spool.stats()))
        self.metrics.read(self._connections)

    def health(self) -> Health:
        """Return whether this worker should get requests."""
        return health_of(self._deliverer.state(), draining=self._ending.is_set())

    async def run(self) -> None:
        """Serve until told to end, or until the main process is gone."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._ending.set)
        self._deliverer.start()
        await self._listener.start([self._listening])
        background = [asyncio.create_task(each) for each in (self._obey(), self._adopt())]
        if self._accepted is not None:
            background.append(asyncio.create_task(self._accepted.run()))
            self.metrics.read(self._unrecorded)
        self._control.tell(News(ready=True))
        # What lives now lives for good: the collector of garbage need not look at it each time.
        gc.collect()
        gc.freeze()
        await self._ending.wait()
        started_s = loop.time()
        cut_off = await self._listener.drain(self._settings.drain_s / 2)
        if cut_off:
            log.warning("connections were cut off", connections=cut_off)
        with contextlib.suppress(TimeoutError):  # what the dead left is ending, too
            await asyncio.wait_for(self._adopt_once(), self._settings.drain_s / 4)
        left = await self._deliverer.drain(max(1.0, self._settings.drain_s - (loop.time() - started_s)))
        for each in background:
            each.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        if self._accepted is not None:
            await self._accepted.flush()
        await asyncio.to_thread(self._spool.close)
        log.info("ended", left_messages=left.messages, left_bytes=left.bytes)

    async def _obey(self) -> None:
        while (order := await self._control.hear(Order)) is not None:
            if order.do == "reload":
                self._reload()
            elif order.do == "report":
                now = self.health()
                self._control.tell(News(ready=now.ready, why=now.why, metrics=self.metrics.page()))
            else:
                break
        self._ending.set()

    def _reload(self) -> None:
        try:
            self._app.sources = Sources.load(self._settings.sources)
        except SourcesError as error:  # the main process read it a moment ago: somebody is writing it
            self.metrics.reloads.labels("refused").inc()
            log.warning("the sources were not read again", problem=str(error))
        else:
            self.metrics.reloads.labels("done").inc()
            log.info("the sources were read again", sources=len(self._app.sources.all))

    async def _adopt(self) -> None:
        """Take over what dead workers left: a worker that ends in a rolling restart ends after the new one began."""
        while True:
            await asyncio.sleep(_ADOPT_EVERY_S)
            await self._adopt_once()

    async def _adopt_once(self) -> None:
        try:
            adopted = await asyncio.to_thread(self._spool.adopt)
        except (SpoolError, SpoolVersionError) as error:
            log.warning("nothing could be adopted", problem=str(error))
            return
        if adopted:
            self._deliverer.replay.wake()

    def _unrecorded(self) -> dict[str, tuple[str, float]]:
        assert self._accepted is not None
        text = "Messages whose acceptance could not be noted: millrace verify will not know of them."
        return {"millrace_collector_unrecorded_total": (text, float(self._accepted.lost))}

    def _connections(self) -> dict[str, tuple[str, float]]:
        return {
            "millrace_collector_connections": ("Open connections.", float(self._listener.connections)),
            "millrace_collector_held_bytes": ("Bodies in memory.", float(self._listener.held_bytes)),
        }


async def _run(settings: Settings, control_fd: int, socket_fd: int, *, first: bool) -> int:
    control = await Control.open(socket.socket(fileno=control_fd))
    try:
        problem = await asyncio.to_thread(problem_with_topic, settings.topic) if first else None
        worker = None if problem else Worker(settings, control, socket.socket(fileno=socket_fd))
    except (SourcesError, SpoolError, SpoolVersionError, GoogleAuthError, ValueError) as error:
        worker, problem = None, str(error)
    if worker is None:
        control.tell(News(fatal=problem))
        control.close()
        return 2
    await worker.run()
    control.close()
    return 0


def main(arguments: list[str]) -> int:
    """Run one worker; the exit code is 0 where it ended in order."""
    control_fd, socket_fd, slot, first, settings_text = arguments
    settings = msgspec.json.decode(settings_text, type=Settings)
    configure_logging(settings.log, settings.log_level, worker=int(slot))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process says what to do
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return uvloop.run(_run(settings, int(control_fd), int(socket_fd), first=first == "1"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

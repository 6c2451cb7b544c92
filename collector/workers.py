"""The workers of one collector: started, replaced when they die, told what to do, asked how they are."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import msgspec
import structlog

from millrace.collector.control import Control, News, Order
from millrace.collector.settings import Settings

log = structlog.get_logger(__name__)

_REPORT_S = 2.0
"""How long a worker may take to say how it is; one that is stuck does not hold up the page."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0
_STEADY_S = 30.0
"""A worker that lived so long had no fault from the start: its successor is started without a pause."""
_GRACE_S = 10.0
"""Past its time to drain, for leaving."""


class CannotStartError(Exception):
    """No worker could serve; the message is one line that says what to do."""


class _Process:
    """One worker process."""

    def __init__(self, process: asyncio.subprocess.Process, control: Control) -> None:
        self.process = process
        self.control = control
        self.ready = asyncio.Event()
        self.fatal = ""
        self.ending = False
        self.started_s = time.monotonic()
        self._reports: list[asyncio.Future[News]] = []
        self._hearing = asyncio.create_task(self._hear())

    @property
    def lives(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.returncode is None

    async def _hear(self) -> None:
        while (news := await self.control.hear(News)) is not None:
            if news.metrics is not None:
                for report in self._reports:
                    if not report.done():
                        report.set_result(news)
                self._reports.clear()
            elif news.fatal is not None:
                self.fatal = news.fatal
            elif news.ready:
                self.ready.set()

    async def report(self) -> News | None:
        """Ask the worker how it is; None: it does not say."""
        report: asyncio.Future[News] = asyncio.get_running_loop().create_future()
        self._reports.append(report)
        self.control.tell(Order("report"))
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(report, _REPORT_S)
        return None

    async def wait_ready(self) -> bool:
        """Wait until it serves; False where it ended instead."""
        ready, ended = asyncio.create_task(self.ready.wait()), asyncio.create_task(self.process.wait())
        await asyncio.wait((ready, ended), return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        ended.cancel()
        if not self.ready.is_set():
            await self._hearing  # its last words
        return self.ready.is_set()

    async def drain(self, within_s: float) -> int:
        """Tell it to end, insist after a while, and return its exit code."""
        self.ending = True
        self.control.tell(Order("drain"))
        try:
            return await asyncio.wait_for(self.process.wait(), within_s)
        except TimeoutError:
            log.warning("a worker did not end in time and is killed", pid=self.process.pid)
            self.process.kill()
            return await self.process.wait()
        finally:
            self._hearing.cancel()
            self.control.close()


class Workers:
    """All of them. Each slot has a listening socket, which stays open when its worker is replaced."""

    def __init__(self, settings: Settings, sockets: Sequence[socket.socket]) -> None:
        """Take the settings, and one listening socket for each worker."""
        self._settings = settings
        self._sockets = sockets
        self._current: dict[int, _Process] = {}
        self._living: list[_Process] = []
        self._watching: list[asyncio.Task[None]] = []
        self._replacing = asyncio.Lock()
        self._started = False
        self.restarts = 0
        """How many workers died."""

    async def start(self) -> None:
        """Start all and return once all serve.

        Raises:
            CannotStartError: one of them does not.
        """
        for slot in range(len(self._sockets)):
            worker = self._current[slot] = await self._spawn(slot, first=slot == 0)
            # The first alone: what is wrong with the settings is said once, and only one asks for the topic.
            if slot == 0 and not await worker.wait_ready():
                raise CannotStartError(worker.fatal or "a worker ended while it started; its own message is above")
        for worker in self._current.values():
            if not await worker.wait_ready():
                raise CannotStartError(worker.fatal or "a worker ended while it started; its own message is above")
        self._watching = [asyncio.create_task(self._watch(slot)) for slot in self._current]

    async def reports(self) -> dict[int, News | None]:
        """Ask every worker how it is; None where one does not say."""
        current = dict(self._current)
        answers = await asyncio.gather(*(worker.report() for worker in current.values()))
        return dict(zip(current, answers, strict=True))

    def reload(self) -> None:
        """Let all read the sources again."""
        for worker in self._current.values():
            worker.control.tell(Order("reload"))

    async def replace(self) -> None:
        """Replace each worker by a new process: the old one ends once the new one serves."""
        async with self._replacing:
            for slot in range(len(self._sockets)):
                new = await self._spawn(slot)
                if not await new.wait_ready():
                    log.error("no worker was replaced from here on: the new one does not start", problem=new.fatal)
                    return
                old, self._current[slot] = self._current[slot], new
                await self._end(old)
                log.info("a worker was replaced", worker=slot, pid=new.process.pid)

    async def drain(self) -> bool:
        """End all; return whether all that lived ended in order. Those that had died before were told of then."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        # Not only the current ones: in the middle of a replacement there is one more, and it may hold requests.
        codes = await asyncio.gather(*(self._end(worker) for worker in self._living if worker.lives))
        return not any(codes)

    async def _end(self, worker: _Process) -> int:
        return await worker.drain(self._settings.drain_s + _GRACE_S)

    async def _spawn(self, slot: int, *, first: bool = False) -> _Process:
        ours, theirs = socket.socketpair()
        control = await Control.open(ours)
        try:
            with theirs:
                listening = self._sockets[slot].fileno()
                settings = msgspec.json.encode(self._settings).decode()
                arguments = [str(theirs.fileno()), str(listening), str(slot), "1" if first else "0", settings]
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "millrace.collector.worker", *arguments,
                    pass_fds=(theirs.fileno(), listening), stdin=subprocess.DEVNULL,
                )  # fmt: skip
        except BaseException:
            control.close()
            raise
        worker = _Process(process, control)  # noted before anything is awaited: a cancelled caller leaves no orphan
        self._living = [*(each for each in self._living if each.lives), worker]
        return worker

    async def _watch(self, slot: int) -> None:
        """Start another worker whenever this slot's dies."""
        pause_s = _FIRST_PAUSE_S
        while True:
            worker = self._current[slot]
            code = await worker.process.wait()
            async with self._replacing:
                if worker.ending or self._current[slot] is not worker:
                    continue  # it was replaced in the meantime
                self.restarts += 1
                lived_s = time.monotonic() - worker.started_s
                pause_s = _FIRST_PAUSE_S if lived_s > _STEADY_S else min(pause_s * 2, _LONGEST_PAUSE_S)
                log.error("a worker died and is replaced", worker=slot, code=code, lived_s=round(lived_s, 1))
                worker.control.close()
                await asyncio.sleep(pause_s)
                try:
                    self._current[slot] = await self._spawn(slot)
                except OSError as error:  # no memory, say: the dead one stays the slot's, so it is tried again
                    log.error("a worker cannot be started now", worker=slot, problem=str(error))  # noqa: TRY400

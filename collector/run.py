"""`millrace collector`: the main process, which serves nobody; it keeps the workers that do."""

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import structlog

from millrace.collector.admin import Admin
from millrace.collector.framing import HttpLimits
from millrace.collector.listener import Listener
from millrace.collector.log import configure_logging
from millrace.collector.settings import Settings, parse
from millrace.collector.sources import Sources, SourcesError
from millrace.collector.spool import Spool, SpoolError, SpoolVersionError
from millrace.collector.workers import CannotStartError, Workers

log = structlog.get_logger(__name__)

DONE, FAILED, NOT_STARTED, SPOOLED = 0, 1, 2, 3
"""Exit codes; see `millrace collector --help`."""

_BACKLOG = 2_048
_OTHER_FILES = 200
"""Open files that are no clients' connections: the spool's, libraries'."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until a signal ends it; return the exit code."""
    settings = parse(arguments)
    configure_logging(settings.log, settings.log_level, worker="main")
    try:
        _check(settings)
        with contextlib.ExitStack() as stack:
            listening = _listen(settings.host, settings.port, settings.workers, stack)
            admin = _listen(settings.admin_host, settings.admin_port, 1, stack)[0]
            in_order = asyncio.run(_run(settings, listening, admin))
    except (CannotStartError, SourcesError) as error:
        print(f"millrace collector: {error}", file=sys.stderr)
        return NOT_STARTED
    left = _left(settings)
    if left:
        log.warning("ended; events are left in the spool: start again with the same --spool", messages=left)
    else:
        log.info("ended; nothing is left")
    return FAILED if not in_order else SPOOLED if left else DONE


async def _run(settings: Settings, listening: list[socket.socket], admin: socket.socket) -> bool:
    """Run until a signal ends it; return whether all ended in order."""
    workers = Workers(settings, listening)
    ending = asyncio.Event()
    tasks: set[asyncio.Task[None]] = set()

    def replace() -> None:
        task = asyncio.create_task(workers.replace())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    loop.add_signal_handler(signal.SIGHUP, _reload, settings, workers)
    loop.add_signal_handler(signal.SIGUSR2, replace)

    starting, ended = asyncio.create_task(workers.start()), asyncio.create_task(ending.wait())
    try:
        await asyncio.wait((starting, ended), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            page = Listener(Admin(workers), HttpLimits(connections=100, held_bytes=1 << 20))
            await page.start([admin])
            host, port = listening[0].getsockname()[:2]
            admin_port = admin.getsockname()[1]
            log.info("ready", host=host, port=port, admin_port=admin_port, workers=len(listening), topic=settings.topic)
            _tell_systemd("READY=1")
            await ending.wait()
            _tell_systemd("STOPPING=1")
            log.info("ending")
    finally:
        starting.cancel()
        ended.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(starting, *tasks, return_exceptions=True)
        in_order = await workers.drain()
    return in_order


def _check(settings: Settings) -> None:
    """Find out what would be wrong in every worker.

    Raises:
        SourcesError, CannotStartError: what, in one line; for the sources, in one line each.
    """
    Sources.load(settings.sources)
    try:
        Path(settings.spool).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.spool):
            pass
    except OSError as error:
        raise CannotStartError(f"--spool {settings.spool} cannot be written: {error.strerror}") from error
    try:
        if settings.accepted:
            Path(settings.accepted).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=settings.accepted):
                pass
    except OSError as error:
        raise CannotStartError(f"--accepted {settings.accepted} cannot be written: {error.strerror}") from error
    wanted = settings.http.connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        if most < wanted:
            raise CannotStartError(
                f"{settings.http.connections} connections need {wanted} open files and {hard} are allowed: "
                "raise `ulimit -n`, or lower --max_connections"
            )


def _listen(host: str, port: int, count: int, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Return listening sockets of one address, among which the kernel spreads connections.

    They stay open in this process while workers come and go, so nobody who connects meanwhile is turned away. Where the
    kernel does not spread (it is Linux's way), all are one.

    Raises:
        CannotStartError: the address cannot be had.
    """
    spread = sys.platform == "linux" and count > 1
    sockets: list[socket.socket] = []
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # Sockets that share an address by SO_REUSEPORT also share it with another collector: so find out first.
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            address = (address[0], probe.getsockname()[1], *address[2:])
        for _ in range(count if spread else 1):
            one = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if spread:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind(address)
            one.listen(_BACKLOG)
            one.setblocking(False)
            sockets.append(one)
    except OSError as error:
        raise CannotStartError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return sockets if spread else sockets * count


def _reload(settings: Settings, workers: Workers) -> None:
    try:
        Sources.load(settings.sources)
    except SourcesError as error:
        log.warning("the sources stay as they were: the file has mistakes", problem=str(error))
    else:
        workers.reload()


def _left(settings: Settings) -> int:
    """Count the messages that all workers, dead ones too, left in the spool."""
    try:
        spool = Spool(Path(settings.spool), settings.spool_max_bytes, own_thread=False)
    except (SpoolError, SpoolVersionError) as error:
        log.warning("what is left in the spool cannot be counted", problem=str(error))
        return 1
    left = spool.stats().messages
    spool.close()
    return left


def _tell_systemd(state: str) -> None:
    """Tell systemd, where it started this with Type=notify (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)


if __name__ == "__main__":
    sys.exit(main())

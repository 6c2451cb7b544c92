"""Group commit: what arrives while one transaction is being synced goes into the next, all with one fsync.

Everything but the transaction itself runs on the event loop: no locks, and effects happen in the order of the writes.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from millrace.broker.errors import Refused
from millrace.broker.store import Store, Write

log = logging.getLogger(__name__)

Done = Callable[[], None]


class Committer:
    """Writes to the store in groups; `write` answers when the group is on disk."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._writes: list[Write] = []
        self._done: list[Done] = []
        self._group: asyncio.Future[None] | None = None
        self._wanted = asyncio.Event()
        self._closing = False
        self._thread = None if store.in_memory else ThreadPoolExecutor(1, thread_name_prefix="broker-commit")
        self._task = asyncio.get_running_loop().create_task(self._run())

    def add(self, statement: str, parameters: Sequence[Any]) -> None:
        """Put a write into the next group, whenever that comes."""
        self._writes.append((statement, parameters))

    def commit(self, done: Done | None = None) -> asyncio.Future[None]:
        """Ask for the next group to be written.

        Args:
            done: called on the event loop once the group is on disk, in the order of the calls to commit.

        Returns:
            What to await: fails with Refused (UNAVAILABLE) where the disk did not take it; nothing of it happened then.
        """
        if self._group is None:
            self._group = asyncio.get_running_loop().create_future()
            self._group.add_done_callback(_retrieved)
        if done is not None:
            self._done.append(done)
        self._wanted.set()
        return self._group

    async def write(self, *writes: Write, done: Done | None = None) -> None:
        """Write, and return when it is on disk. Raises Refused (UNAVAILABLE) where it could not be."""
        self._writes += writes
        # A client that hangs up cancels its call, not the group of the others.
        await asyncio.shield(self.commit(done))

    async def close(self) -> None:
        """Write what is left, and end the thread."""
        self._closing = True
        self._wanted.set()
        await self._task
        if self._thread is not None:
            self._thread.shutdown()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            writes, self._writes = self._writes, []
            done, self._done = self._done, []
            group, self._group = self._group, None
            failure: Refused | None = None
            if writes:
                try:
                    if self._thread is None:
                        self._store.apply(writes)
                    else:
                        await loop.run_in_executor(self._thread, self._store.apply, writes)
                except sqlite3.Error as error:
                    log.exception("the broker's store refused a write")
                    failure = Refused(grpc.StatusCode.UNAVAILABLE, f"The broker's store refused the write: {error}")
            if failure is None:
                for call in done:
                    call()
            if group is not None:
                if failure is None:
                    group.set_result(None)
                else:
                    group.set_exception(failure)
            if self._closing and not self._writes and self._group is None:
                return


def _retrieved(group: asyncio.Future[None]) -> None:
    if not group.cancelled():
        group.exception()  # whoever awaited it may have hung up: not an error of the loop

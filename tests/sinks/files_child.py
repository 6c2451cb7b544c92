"""A lane in small, in a process of its own that is killed: delivers events to files, in parts, in order.

    python -m tests.sinks.files_child FOLDER COUNT COMPRESS WHERE

WHERE: never; after_write: when the second write is on disk and not noted; torn: in the middle of it; after_note: when
the second delivery is noted and was not said; after_rename: when a file got its final name and that is not noted.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from millrace.delivery.ledger import Ledger
from millrace.sinks.files import Files
from millrace.sinks.recent_ids import RecentIds
from millrace.sinks.sink import DELIVERED, Delivery, Outcome
from tests.sinks.child_deliveries import deliveries


def main() -> None:
    folder, count, compressed, where = sys.argv[1:]
    compress = compressed == "True"
    sink = Files(folder=f"{folder}/out", name="{route}", roll_bytes=2_000 if compress else 30_000, compress=compress)
    left = 2

    def dies(place: str) -> None:
        nonlocal left
        if place == where:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    deliver, write, rename = Files._write, Files._write_whole, Files._rename

    async def dying_deliver(self: Files, recent: RecentIds, delivery: Delivery) -> list[Outcome]:
        outcomes = await deliver(self, recent, delivery)
        dies("after_note")
        return outcomes

    def dying_write(self: Files, part: Any, data: bytes) -> None:
        if where == "torn" and left == 1:
            os.write(part.descriptor, data[: len(data) // 2])
        dies("torn")
        write(self, part, data)
        dies("after_write")

    def dying_rename(self: Files, part: Any) -> None:
        rename(self, part)
        dies("after_rename")

    Files._write, Files._write_whole, Files._rename = dying_deliver, dying_write, dying_rename  # type: ignore[method-assign]
    asyncio.run(_deliver(sink, Path(folder), int(count)))


async def _deliver(sink: Files, folder: Path, count: int) -> None:
    parts = deliveries(count)
    ledger = Ledger(folder / "ledger.sqlite")
    await sink.open(ledger)
    for at in range(int(ledger.get("child") or 0), len(parts)):
        ledger.put("child", str(at).encode())  # what went before this delivery, as a lane writes it behind the word
        assert await sink.deliver(parts[at]) == [DELIVERED] * len(parts[at])
        print(at, flush=True)
    await sink.close()
    ledger.close()


if __name__ == "__main__":
    main()

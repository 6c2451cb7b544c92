"""A process that delivers messages without end, and prints the name of each that is durable: to be killed.

python -m tests.collector.delivery_child TOPIC SPOOL_FOLDER PREFIX
"""

import asyncio
import contextlib
import sys
from pathlib import Path

from millrace.collector.deliver import Deliverer
from millrace.collector.delivery import DeliverySettings, NotDurableError
from millrace.collector.publish import TopicPublisher
from millrace.collector.spool import Spool
from millrace.collector.unfit import UnfitFolder
from tests.support.delivering import message


async def deliver_for_ever(topic: str, folder: Path, prefix: str) -> None:
    """Keep 20 messages under way until killed."""
    spool = Spool(folder, 50_000_000, segment_bytes=20_000)
    settings = DeliverySettings(deadline_s=0.2)
    deliverer = Deliverer(TopicPublisher(topic), spool, settings, set_aside=UnfitFolder(folder / "unfit").keep)
    deliverer.start()

    async def one_after_the_other(sender: int) -> None:
        number = 0
        while True:
            number += 1
            name = f"{prefix}-{sender}-{number}"
            with contextlib.suppress(NotDurableError):
                await deliverer.deliver([message(name, body_bytes=300)])
                print(name, flush=True)
            await asyncio.sleep(0.005)

    await asyncio.gather(*(one_after_the_other(sender) for sender in range(20)))


if __name__ == "__main__":
    asyncio.run(deliver_for_ever(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))

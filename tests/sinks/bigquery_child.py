"""A lane in small, in a process of its own that dies where it is told: delivers events to BigQuery, in parts, in order.

    python -m tests.sinks.bigquery_child FOLDER TABLE ENDPOINT REST_ENDPOINT COUNT WHERE NUMBER

WHERE: never; after_put: when the intent of append NUMBER is written; after_append: when that append was answered.
It writes down what was delivered as a lane does, later: here at the next delivery, or never.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from millrace.delivery.ledger import Ledger
from millrace.sinks.bigquery import BigQuery
from millrace.sinks.bigquery_stream import Answer, Stream
from millrace.sinks.sink import DELIVERED, SinkDownError
from tests.sinks.child_deliveries import deliveries


def main() -> None:
    folder, table, endpoint, rest_endpoint, count, where, number = sys.argv[1:]
    sink = BigQuery(table=table, endpoint=endpoint, rest_endpoint=rest_endpoint, timeout_s=30.0)
    left = int(number)

    def dies() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    append = Stream.append

    async def dying_append(self: Stream, rows: object) -> Answer:
        if where == "after_put":
            dies()
        answer = await append(self, rows)
        if where == "after_append":
            dies()
        return answer

    Stream.append = dying_append  # type: ignore[method-assign]
    asyncio.run(_deliver(sink, Path(folder), int(count)))


async def _deliver(sink: BigQuery, folder: Path, count: int) -> None:
    parts = deliveries(count)
    ledger = Ledger(folder / "ledger.sqlite")
    is_open = False
    at = int(ledger.get("child") or 0)
    while at < len(parts):
        try:
            if not is_open:
                await sink.open(ledger)
                is_open = True
            ledger.put(
                "child", str(at).encode()
            )  # what went before this delivery, as a lane writes it behind the sink's word
            assert await sink.deliver(parts[at]) == [DELIVERED] * len(parts[at])
            at += 1
            print(at, flush=True)
        except SinkDownError:
            is_open = False
            await asyncio.sleep(0.05)  # the lane's breaker
    await sink.close()
    ledger.close()


if __name__ == "__main__":
    main()

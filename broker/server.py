"""`millrace broker`: the embedded Pub/Sub as a process of its own."""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence

from millrace.broker.chaos import Chaos
from millrace.broker.embedded import Running
from millrace.broker.errors import CannotStart
from millrace.broker.store import MEMORY, Store

DESCRIPTION = """An embedded Google Cloud Pub/Sub for a laptop, a single node and tests.

Ordinary Pub/Sub clients use it when PUBSUB_EMULATOR_HOST is set. What it has acknowledged
to a publisher is on disk: a kill -9 or a power cut loses none of it."""

EPILOG = """examples:
  millrace broker                                       keep messages in data/broker, serve on 127.0.0.1:8085
  millrace broker --port 0 --data :memory:              any free port, nothing kept
  millrace broker --chaos drop_acks=0.1,duplicate=0.05  trouble on purpose, for tests

chaos switches, shares 0..1 and milliseconds:
  drop_acks  duplicate  reorder  reorder_ms  fail_publish  delay_publish_ms  delay_pull_ms  stall  seed

refused as not supported: push, exactly-once delivery, schemas, IAM, transforms, BigQuery and Storage exports"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM.

    Returns:
        0 after a clean stop, 2 where it cannot start (one line on stderr says why).
    """
    parser = argparse.ArgumentParser(
        prog="millrace broker",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default %(default)s: this machine only)"
    )
    parser.add_argument("--port", type=int, default=8085, help="port, 0: any free one, printed (default %(default)s)")
    parser.add_argument(
        "--data",
        default="data/broker",
        metavar="DIR",
        help="directory for the messages, made where missing, or :memory: (default %(default)s)",
    )
    parser.add_argument(
        "--cache_mb",
        type=int,
        default=64,
        metavar="MB",
        help="MiB of recent messages in memory (default %(default)s); more: fewer reads for subscribers that lag",
    )
    parser.add_argument(
        "--chaos", default="", metavar="SWITCH=VALUE,...", help="trouble on purpose, see below (default none)"
    )
    options = parser.parse_args(arguments)
    if not 0 <= options.port <= 65535:
        parser.error(f"--port must be within 0 .. 65535, got {options.port}")
    try:
        chaos = Chaos.parse(options.chaos)
    except ValueError as error:
        parser.error(f"--chaos: {error}")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        asyncio.run(_serve(options.host, options.port, options.data, options.cache_mb << 20, chaos))
    except CannotStart as error:
        print(f"millrace broker: {error}", file=sys.stderr)
        return 2
    return 0


async def _serve(host: str, port: int, data: str, cache_bytes: int, chaos: Chaos) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    running = await Running.start(Store(data, cache_bytes), host, port, chaos)
    kept = "nothing is kept" if data == MEMORY else f"messages in {data}"
    print(f"Pub/Sub is ready ({kept}): export PUBSUB_EMULATOR_HOST={host}:{running.port}", flush=True)
    await stop.wait()
    await running.stop()


if __name__ == "__main__":
    sys.exit(main())

"""The `millrace` command: one sub-command per module, loaded when called."""

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "local": ("millrace.local.run", "run the main job on this machine, with sample traffic"),
    "collector": ("millrace.collector.run", "events over HTTP into Pub/Sub: the door for SDKs"),
    "events": ("millrace.pipelines.events", "the job itself: Pub/Sub in, per-user order, archive out"),
    "deliver": ("millrace.delivery.run", "events from the archive to the sinks: webhooks, databases, queues"),
    "sinks": ("millrace.delivery.sinks_command", "how delivery goes, who is blocked; retry, skip or park an event"),
    "broker": ("millrace.broker.server", "the embedded Pub/Sub"),
    "doctor": (
        "millrace.local.doctor",
        "what the main job would lack on this machine, and what to do about it",
    ),
    "check": (
        "millrace.collector.check",
        "is millrace.yaml right (sources, the job's sections, sinks, routes), and if not, where",
    ),
    "source": ("millrace.collector.add", "add a source of events, give it a second key, list what there is"),
    "schema": ("millrace.pipelines.schema", "propose contracts from the archive, and check changed ones against it"),
    "routes": ("millrace.pipelines.routes", "where an event would go, and why"),
    "dry-run": ("millrace.pipelines.dry_run", "what a changed configuration would make of the archive's last days"),
    "new": ("millrace.testing.new", "a transform of your own, with its test, to start from"),
    "verify": ("millrace.pipelines.verify", "is every accepted event accounted for, and if not, which are missing"),
    "compact": ("millrace.sinks.compact", "merge the small files of a table, and clear what nobody needs"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command and return its exit code; each owns its options: `millrace COMMAND --help`."""
    parser = argparse.ArgumentParser(
        prog="millrace",
        description="Customer events from Pub/Sub to Parquet, each user's in their true order.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(["commands:", *(f"  {name:10} {text}" for name, (_, text) in COMMANDS.items())]),
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    given = list(sys.argv[1:] if arguments is None else arguments)
    chosen = parser.parse_args(given[:1]).command
    try:
        module = importlib.import_module(COMMANDS[chosen][0])
        code: int = module.main(given[1:])
    except KeyboardInterrupt:  # before a command has its own ways, or where it needs none
        print(f"millrace {chosen}: ended by Ctrl-C.", file=sys.stderr)
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())

"""A destination that fails in every way, for tests of lanes: what it takes, it writes to a file, at once."""

import asyncio
import dataclasses
import os
import random
from collections.abc import Sequence
from pathlib import Path

import msgspec

from millrace.sinks.sink import DELIVERED, Delivery, Fault, Memory, Outcome, Rejected, Retry, Sink, SinkDownError


@dataclasses.dataclass(frozen=True)
class Faulty(Sink):
    """Takes events, or fails: by chance, as long as a file `faults` is beside its record.

    Attributes:
        record: a JSON line for each event taken, in the order in which they were.
        keeps_order: see Sink.
        rejects: ids of which no resend helps, by what they begin with.
        chance: of a fault, for each delivery.
        seed: of its chance, together with the process's id.
    """

    record: str
    keeps_order: bool = True
    rejects: str = "0"
    chance: float = 0.5
    seed: int = 0
    max_events: int = 20
    _random: random.Random = dataclasses.field(default_factory=random.Random, init=False, compare=False)

    def __post_init__(self) -> None:
        """Seed the chance, differently in each process."""
        self._random.seed(f"{self.seed} {os.getpid()}")

    async def open(self, memory: Memory) -> None:  # noqa: ARG002  it needs none
        """Be down by chance."""
        if self._fails(0.2):
            raise SinkDownError("it does not open")

    async def deliver(self, delivery: Delivery) -> Sequence[Outcome]:
        """Take all, a prefix, some, or none."""
        await asyncio.sleep(0)
        verdicts: list[Outcome] = [
            Rejected(Fault.REJECTED, "its id begins so") if each.startswith(self.rejects) else DELIVERED
            for each in delivery.message_ids
        ]
        kind = self._random.randrange(7) if self._fails(self.chance) else -1
        size = len(delivery)
        if kind == 0:
            raise SinkDownError("it is down")
        if kind == 1:
            raise RuntimeError("a bug")
        if kind == 2:
            return [Retry(Fault.THROTTLED, "too many", after_s=0.02)] * size
        if kind == 3:  # it takes a prefix, and stalls: the lane hears nothing of it
            self._take(delivery, verdicts, range(self._random.randrange(size + 1)))
            await asyncio.sleep(60)
        if kind == 4:  # a prefix, and says so
            until = self._random.randrange(size + 1)
            verdicts[until:] = [Retry(Fault.FAILED, "not the rest")] * (size - until)
        if kind == 5 and not self.keeps_order:  # any of them
            verdicts = [each if self._random.random() < 0.5 else Retry(Fault.FAILED, "not this") for each in verdicts]
        if (
            kind == 6
        ):  # for a moment it rejects what it takes at another: what is dead must stay so, or come out of order
            until = self._random.randrange(size)
            verdicts[until] = Rejected(Fault.REJECTED, "for a moment")
            if self.keeps_order:  # and takes nothing behind it: that could not be told from the wrong order
                verdicts[until + 1 :] = [Retry(Fault.FAILED, "not the rest")] * (size - until - 1)
        self._take(delivery, verdicts, range(size))
        return verdicts

    def _fails(self, chance: float) -> bool:
        is_on = Path(self.record).with_name("faults").exists()
        return is_on and self._random.random() < chance

    def _take(self, delivery: Delivery, verdicts: Sequence[Outcome], rows: range) -> None:
        lines = [
            msgspec.json.encode(
                [delivery.user_keys[i], delivery.positions[i], delivery.message_ids[i], delivery.is_ordered[i]]
            )
            for i in rows
            if verdicts[i] is DELIVERED
        ]
        with Path(self.record).open("ab") as file:  # one write: a kill leaves all of it, or nothing
            file.write(b"".join(line + b"\n" for line in lines))

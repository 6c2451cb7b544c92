"""The spool against a model: whatever the disk does, what was acknowledged is read in order until it is settled."""

import errno
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from random import Random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from millrace.collector.message import Message
from millrace.collector.spool import Place, Spool, SpoolError
from tests.collector.simulated_disk import SimulatedDisk

ROOT = Path("/var/spool")
CAPACITY_BYTES = 1500
SEGMENT_BYTES = 400
ALL = 1 << 30
FAULTS = [
    ("write", errno.ENOSPC),
    ("write", errno.EIO),
    ("sync", errno.EIO),
    ("sync", errno.ENOSPC),
    ("sync_folder", errno.EIO),
    ("truncate", errno.EIO),
    ("create", errno.ENOSPC),
    ("create", errno.EMFILE),
    ("make_folder", errno.ENOSPC),
    ("remove", errno.EIO),
    ("remove_folder", errno.EIO),
    ("lock", errno.ENOSPC),
]
faults = st.lists(st.sampled_from(FAULTS), min_size=1, max_size=2, unique_by=lambda fault: fault[0])


def number_of(message: Message) -> int:
    return int(message.attributes["number"])


class SpoolMachine(RuleBasedStateMachine):
    """One collector process, its machine, and now and then a sibling that dies."""

    @initialize(seed=st.integers(0, 1 << 32))
    def start(self, seed: int) -> None:
        self.random = Random(seed)  # noqa: S311  the same every time
        self.disk = SimulatedDisk(self.random)
        self.appended: list[Message] = []
        self.worker: list[str] = []
        self.waiting: dict[int, Future[None]] = {}
        self.acknowledged: set[int] = set()
        self.settled: set[int] = set()
        self.never: set[int] = set()
        """Refused before anything was written, or cancelled: these must not turn up."""
        self.held: list[int] = []
        """What this process must return, in order."""
        self.faulty = False
        """Whether a call failed, so that more may be on disk than is known."""
        self.adopted_bytes = 0
        self.spool = self.opened()

    def opened(self) -> Spool:
        return Spool(ROOT, CAPACITY_BYTES, segment_bytes=SEGMENT_BYTES, disk=self.disk, own_thread=False)

    def put(self, spool: Spool, sizes: Iterable[int]) -> dict[int, Future[None]]:
        futures = {}
        for size in sizes:
            number = len(self.appended)
            body = self.random.randbytes(size)
            self.appended.append(Message(body, {"number": str(number)}, events=size))
            self.worker.append(self.disk.owner)
            future = spool.append(self.appended[-1])
            if future.done():
                assert isinstance(future.exception(), SpoolError)
                self.never.add(number)
            else:
                futures[number] = future
        return futures

    def commit_all(self, spool: Spool, futures: dict[int, Future[None]]) -> list[int]:
        """Write what waits; return what is acknowledged."""
        while spool.commit():
            pass
        done = []
        for number, future in futures.items():
            if future.cancelled():
                continue
            if future.exception(timeout=0) is None:
                done.append(number)
            else:
                assert isinstance(future.exception(), SpoolError)
        self.acknowledged.update(done)
        return done

    @rule(sizes=st.lists(st.integers(0, 250), min_size=1, max_size=4))
    def append(self, sizes: list[int]) -> None:
        self.waiting |= self.put(self.spool, sizes)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.waiting.pop(number).cancel()
        self.never.add(number)

    @rule()
    def commit(self) -> None:
        before = self.bytes_on_disk()
        self.held += self.commit_all(self.spool, self.waiting)
        self.waiting = {}
        assert self.bytes_on_disk() <= max(CAPACITY_BYTES, before)

    @rule(given_faults=faults, times=st.integers(1, 3))
    def fail(self, given_faults: list[tuple[str, int]], times: int) -> None:
        for call, error in given_faults:
            self.disk.failing[call] = [error] * times
        self.faulty = True

    @rule(
        sizes=st.lists(st.integers(0, 250), min_size=1, max_size=4), given_faults=faults, times=st.integers(1, 2),
        power_too=st.booleans(),
    )  # fmt: skip
    def append_while_the_disk_fails(
        self, sizes: list[int], given_faults: list[tuple[str, int]], times: int, power_too: bool
    ) -> None:
        self.append(sizes)
        self.fail(given_faults, times)
        self.commit()
        self.recover()
        if power_too:
            self.lose_power()

    @rule()
    def recover(self) -> None:
        self.disk.failing.clear()

    @rule(room_bytes=st.one_of(st.none(), st.integers(0, 600)))
    def fill_or_free_the_disk(self, room_bytes: int | None) -> None:
        self.disk.room_bytes = room_bytes

    @rule(limit_bytes=st.integers(0, 1200))
    def read(self, limit_bytes: int) -> None:
        found = self.spool.oldest(limit_bytes)
        numbers = [number_of(message) for _, message in found]
        assert numbers == self.held[: len(numbers)]
        assert bool(numbers) == bool(self.held)
        assert len(numbers) <= 1 or sum(len(message.body) for _, message in found) <= limit_bytes

    @rule(share=st.sampled_from([1.0, 1.0, 0.5]), limit_bytes=st.sampled_from([300, ALL]), twice=st.booleans())
    def settle(self, share: float, limit_bytes: int, twice: bool) -> None:
        found = [(place, m) for place, m in self.spool.oldest(limit_bytes) if self.random.random() < share]
        for _ in range(1 + twice):
            self.spool.settle([place for place, _ in found])
        gone = Counter(number_of(message) for _, message in found)
        self.settled |= gone.keys()
        kept = []
        for number in self.held:  # copies are settled in order
            if gone[number]:
                gone[number] -= 1
            else:
                kept.append(number)
        self.held = kept

    @rule()
    def restart(self) -> None:
        left = self.spool.close()
        self.held += self.commit_all(self.spool, self.waiting)
        assert left.messages == len(self.held)
        self.disk.kill("main")
        self.come_back()

    @rule()
    def kill(self) -> None:
        self.disk.kill("main")
        self.come_back()

    @rule()
    def lose_power(self) -> None:
        self.faulty = True
        self.disk.lose_power()
        self.come_back()

    @rule(sizes=st.lists(st.integers(0, 150), max_size=4), power_too=st.booleans())
    def a_sibling_dies(self, sizes: list[int], power_too: bool) -> None:
        self.disk.failing.clear()
        self.disk.owner = "sibling"
        sibling = self.opened()
        self.commit_all(sibling, self.put(sibling, sizes))
        self.disk.kill("sibling")
        self.disk.owner = "main"
        if power_too:
            self.lose_power()
        else:
            self.adopt()

    @rule()
    def adopt(self) -> None:
        self.disk.failing.clear()
        self.spool.adopt()
        self.look_again()

    @invariant()
    def what_is_held_is_read(self) -> None:
        found = self.spool.oldest(ALL)
        assert [number_of(message) for _, message in found] == self.held
        assert [message for _, message in found] == [self.appended[number] for number in self.held]
        places: list[Place] = [place for place, _ in found]
        assert len(set(places)) == len(places)

    @invariant()
    def it_knows_its_size(self) -> None:
        stats = self.spool.stats()
        assert stats.messages == len(self.held)
        assert stats.bytes >= self.bytes_on_disk()
        if not self.faulty:
            assert stats.bytes == self.bytes_on_disk()
            assert (stats.corrupt_frames, stats.torn_tails) == (0, 0)

    def come_back(self) -> None:
        self.disk.failing.clear()
        self.waiting = {}
        self.spool = self.opened()
        self.look_again()

    def look_again(self) -> None:
        """Take what is there for what is held, if it may be."""
        self.held = [number_of(message) for _, message in self.spool.oldest(ALL)]
        assert not self.never & set(self.held)
        for worker in ("main", "sibling"):
            seen = [number for number in self.held if self.worker[number] == worker]
            assert list(dict.fromkeys(seen)) == sorted(set(seen))
            assert list(dict.fromkeys(reversed(seen))) == sorted(set(seen), reverse=True)
        assert self.faulty or len(set(self.held)) == len(self.held)
        if not self.leftovers():
            assert self.acknowledged - self.settled <= set(self.held)

    def mine(self) -> set[Path]:
        own = [self.spool._claim.folder] if self.spool._claim else []
        return {*own, *self.spool._backlog._adopted}

    def leftovers(self) -> set[Path]:
        return {path.parent for path in self.disk.segments()} - self.mine()

    def bytes_on_disk(self) -> int:
        mine = self.mine()
        return sum(len(data) for path, data in self.disk.segments().items() if path.parent in mine)

    def teardown(self) -> None:
        """Send all on, as the collector would: nothing acknowledged is missing, and nothing stays on disk."""
        if not hasattr(self, "spool"):
            return
        self.disk.failing.clear()
        self.disk.room_bytes = None
        self.commit()
        while True:
            found = self.spool.oldest(ALL)
            self.settled |= {number_of(message) for _, message in found}
            self.spool.settle([place for place, _ in found])
            if not self.spool.adopt():
                break
        assert self.acknowledged <= self.settled
        assert not self.settled & self.never
        assert list(self.disk.segments()) == []
        assert self.spool.close().messages == 0


SpoolMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSpoolMachine = SpoolMachine.TestCase

"""A lane: carries events from its feed to its sink, and writes down what became of them.

One asyncio loop. What blocks (the ledger, Parquet) runs in a thread of its own, one call at a time; the barrier, which
says what may go, belongs to the loop.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from millrace.delivery import clock
from millrace.delivery.barrier import Barrier
from millrace.delivery.books import Books, Ledgers, State
from millrace.delivery.feed import Feed
from millrace.delivery.gather import gather
from millrace.delivery.pending import Pending
from millrace.delivery.settings import LaneSettings
from millrace.delivery.throttle import Breaker, Concurrency, Rate
from millrace.sinks.sink import CannotOpenSinkError, Fault, Outcome, Retry, Sink, SinkDownError
from millrace.sinks.storage import StorageError

_LOG = logging.getLogger(__name__)
_SAVE_S = 0.2
_NO_ROOM_S = 0.05
_UNREADABLE_S = 1.0
_CLOSES_S = 5.0
"""For a sink's `close`, and for code of its that does not end where it is cancelled."""
_CONGESTED = {Fault.THROTTLED, Fault.TIMED_OUT}


class Lane:
    """A lane at work: `run` it.

    Args:
        settings: the lane's.
        feed: where the events come from.
        sink: made, not opened.
        ledgers: what it writes to.
    """

    def __init__(self, settings: LaneSettings, feed: Feed, sink: Sink, ledgers: Ledgers) -> None:
        self._settings = settings
        self._name = settings.name
        self._feed = feed
        self._memory = ledgers.of_sink
        self._sink = sink
        self._barrier = Barrier(settings.sink.retry, keeps_order=sink.keeps_order)
        self._books = Books(settings, feed, ledgers, self._barrier)
        self._max_events = settings.sink.max_events or sink.max_events
        self._concurrency = Concurrency(settings.sink.max_in_flight or sink.max_in_flight)
        self._breaker = Breaker()
        self._rates = [None if route.rate is None else Rate(route.rate, clock.now_us()) for route in settings.routes]
        self._in_flight: set[asyncio.Task[None]] = set()
        self._is_open = False
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._hurrying = asyncio.Event()
        self._is_draining = False
        self._opening: asyncio.Task[None] | None = None

    def stop(self, drain_s: float = 0.0) -> None:
        """Read no more, let what is under way arrive (for as long as a delivery may take), save, and end.

        Told a second time, it waits for nothing any more: what is under way is cancelled, and comes again.

        Args:
            drain_s: before that, go on for so long at most, until everything in the queue is settled.
        """
        if self._is_draining or self._stopping.is_set():
            self._hurrying.set()
            self._stop_now()
        elif drain_s <= 0:
            self._stop_now()
        else:
            self._is_draining = True
            asyncio.get_running_loop().call_later(drain_s, self._stop_now)

    def _stop_now(self) -> None:
        self._stopping.set()
        self._books.end(at_once=self._hurrying.is_set())
        if self._opening is not None:
            self._opening.cancel()
        self._wake.set()

    async def run(self) -> None:
        """Deliver until `stop`.

        Raises:
            CannotOpenSinkError: the sink can never work as it is configured.
            StorageError: the archive cannot be read.
        """
        state, detail = "failed", ""
        try:
            await self._books.open()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read())
                tasks.create_task(self._keep_books())
                tasks.create_task(self._pump())
            await self._books.save()
            state = "stopped"
        except BaseExceptionGroup as group:
            detail = _why(group.exceptions[0])
            raise group.exceptions[0] from group
        except Exception as error:
            detail = _why(error)
            raise
        finally:
            await self._end(state, detail)

    async def _end(self, state: str, detail: str) -> None:
        for task in self._in_flight:
            task.cancel()
        if self._in_flight:
            await asyncio.wait(self._in_flight, timeout=_CLOSES_S)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_CLOSES_S):
                await self._sink.close()
        await self._books.close(state, detail)

    async def _read(self) -> None:
        """Offer what the feed gives, as long as there is room: beyond it the queue waits, and only this lane's."""
        while not self._stopping.is_set():
            # What is settled and not written down counts, too: else a full disk here would let it grow without end.
            if len(self._barrier) + self._books.unsaved >= self._settings.sink.max_waiting:
                await self._pause(_NO_ROOM_S)
                continue
            events = await self._books.read()
            if events is None:  # it could not be read; said so
                await self._pause(_UNREADABLE_S)
            elif events:
                self._barrier.offer(events)
                self._wake.set()
            if self._is_draining and self._is_done(events):
                self._stop_now()

    def _is_done(self, events: list[Pending] | None) -> bool:
        return not events and not len(self._barrier) and self._books.has_read_all

    async def _pump(self) -> None:
        """Start deliveries whenever the sink, the routes' rates and the order of users allow it."""
        while not self._stopping.is_set():
            self._wake.clear()
            if self._is_open or await self._open_sink():
                await self._start_what_may_go()
            await self._until_something_happens()
        hurried = asyncio.create_task(self._hurrying.wait())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.sink.deadline_s):
                while self._in_flight and not hurried.done():
                    await asyncio.wait({*self._in_flight, hurried}, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()

    async def _start_what_may_go(self) -> None:
        while self._is_open and len(self._in_flight) < self._concurrency.limit and not self._stopping.is_set():
            if not await self._books.before_take() or self._stopping.is_set():
                return
            # Nothing is awaited from here to the take: what is settled meanwhile is not written down.
            now_us = clock.now_us()
            if not self._breaker.allows(now_us):
                return
            events = self._take(now_us)
            if not events:
                self._breaker.cancelled(now_us)
                return
            self._start(events, now_us)

    def _take(self, now_us: int) -> list[Pending]:
        def room(route: int) -> int:
            rate = self._rates[route]
            return self._max_events if rate is None else rate.room(now_us)

        return self._barrier.take(now_us, self._max_events, self._sink.max_bytes, lambda route: room(route) > 0, room)

    async def _until_something_happens(self) -> None:
        now_us = clock.now_us()
        due = [self._barrier.next_us(), self._breaker.next_us()]
        due += [rate.next_us(now_us) for rate in self._rates if rate is not None]
        waits_us = [at - now_us for at in due if at is not None and at > now_us]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), min([1_000_000, *waits_us]) / 1_000_000)

    async def _open_sink(self) -> bool:
        began_us = clock.now_us()
        if not self._breaker.allows(began_us):
            return False
        try:
            async with asyncio.timeout(self._settings.sink.deadline_s):
                self._opening = asyncio.ensure_future(self._sink.open(self._memory))
                await self._opening
        except asyncio.CancelledError:
            if not self._stopping.is_set():
                raise
        except SinkDownError as error:
            self._down(error, began_us)
        except TimeoutError:
            self._down(SinkDownError(f"no connection within {self._settings.sink.deadline_s:g} s"), began_us)
        else:
            self._is_open = True
            self._breaker.cancelled(began_us)  # the first delivery will tell
        self._opening = None
        return self._is_open

    def _down(self, error: SinkDownError, began_us: int) -> None:
        was_up = self._breaker.since_us is None
        self._breaker.down(error, began_us, clock.now_us())
        if was_up and self._breaker.since_us is not None:
            _LOG.warning("%s is down: %s. Its events wait.", self._name, error.detail)
        self._is_open = False

    def _start(self, events: list[Pending], now_us: int) -> None:
        rate = self._rates[events[0].route]
        if rate is not None:
            rate.spend(len(events))
        task = asyncio.create_task(self._deliver(events, now_us))
        self._in_flight.add(task)
        task.add_done_callback(self._landed)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self._wake.set()

    async def _deliver(self, events: list[Pending], began_us: int) -> None:
        outcomes: Sequence[Outcome]
        try:
            async with asyncio.timeout(self._settings.sink.deadline_s):
                outcomes = await self._sink.deliver(gather(events, self._settings.routes[events[0].route]))
            if len(outcomes) != len(events):
                raise RuntimeError(f"it gave {len(outcomes)} outcomes for {len(events)} events")  # noqa: TRY301
        except SinkDownError as error:
            self._put_back(events)
            self._down(error, began_us)
            return
        except asyncio.CancelledError:
            self._put_back(events)
            raise
        except TimeoutError:
            detail = f"no answer within {self._settings.sink.deadline_s:g} s"
            outcomes = [Retry(Fault.TIMED_OUT, detail)] * len(events)
        except Exception as error:  # noqa: BLE001  whatever a sink's code does, the lane goes on
            _LOG.exception("%s: the sink's code failed", self._name)
            outcomes = [Retry(Fault.FAILED, f"{type(error).__name__} in the sink's code")] * len(events)
        self._settle(events, outcomes, began_us)

    def _put_back(self, events: list[Pending]) -> None:
        rate = self._rates[events[0].route]
        if rate is not None:
            rate.spend(-len(events))
        self._barrier.put_back(events)

    def _settle(self, events: list[Pending], outcomes: Sequence[Outcome], began_us: int) -> None:
        now_us = clock.now_us()
        if any(isinstance(each, Retry) and each.fault in _CONGESTED for each in outcomes):
            self._concurrency.congested(began_us, now_us)
        else:
            self._concurrency.answered(began_us, now_us, len(self._in_flight), len(events))
        was_up = self._breaker.since_us is None
        self._breaker.settled(outcomes, began_us, now_us, is_new=any(not event.attempts for event in events))
        if was_up != (self._breaker.since_us is None):
            text = "fails at everything (%s): its events wait." if was_up else "works again.%s"
            _LOG.warning("%s " + text, self._name, self._breaker.detail if was_up else "")
        self._books.settled(self._barrier.settle(list(zip(events, outcomes, strict=True)), now_us), now_us)

    async def _keep_books(self) -> None:
        while not self._stopping.is_set():
            await self._pause(_SAVE_S)
            await self._books.save()
            if await self._books.obey():
                self._wake.set()
            await self._books.say(self._state())

    def _state(self) -> State:
        return State(
            detail="" if self._breaker.since_us is None else self._breaker.detail,
            down_since_us=self._breaker.since_us,
            in_flight=len(self._in_flight),
            concurrency=self._concurrency.limit,
        )

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)


def _why(error: BaseException) -> str:
    known = isinstance(error, CannotOpenSinkError | StorageError)
    return str(error) if known else f"{type(error).__name__} in the lane's code; its log has more"

"""One response in the making: what a delivery takes, up to what its client has asked and has room for."""

from array import array

from millrace.broker.ordering import Flow, Pending


class Delivery:
    """The messages that one response leases, all under one lease until one time (monotonic seconds)."""

    __slots__ = ("_flow", "_room", "ids", "lease", "limit", "taken", "until")

    def __init__(self, lease: str, until: float, limit: int, room: int, flow: Flow | None) -> None:
        self.lease = lease
        self.until = until
        self.limit = limit  # messages that still fit
        self._room = room  # bytes that still fit
        self._flow = flow
        self.ids = array("q")
        self.taken: list[tuple[Pending, memoryview]] = []

    def fits(self, view: memoryview) -> bool:
        """Whether this message may still be added."""
        # A message larger than all the room there may ever be goes out alone.
        return len(view) <= self._room or not (self.taken or (self._flow is not None and self._flow.messages))

    def add(self, pending: Pending, view: memoryview) -> None:
        """Add a message."""
        size = len(view)
        self._room -= size
        self.limit -= 1
        self.ids.append(pending.id)
        self.taken.append((pending, view))
        if self._flow is not None:
            pending.stream = self._flow
            self._flow.took(pending.id, size)

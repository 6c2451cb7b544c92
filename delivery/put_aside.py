"""Put aside: parked events of a lane without order. Their messages are acknowledged; the ledger has what is sent."""

from collections.abc import Sequence

from millrace.delivery.ledger import Ledger, Parked
from millrace.delivery.parked import read_parked, write_parked
from millrace.delivery.pending import Pending
from millrace.transforms.route import Route


class PutAside:
    """What an operator parked. A record stays until its event is settled: after a crash it is parked again.

    Args:
        ledger: the lane's, open for writing.
        routes: the lane's.
    """

    def __init__(self, ledger: Ledger, routes: Sequence[Route]) -> None:
        self._ledger = ledger
        self._names = [route.name for route in routes]
        self.ids: set[str] = set()
        """The message_ids of what is parked: it may come again, with others of its message that are not settled."""
        self._added: list[Parked] = []
        self._back: set[int] = set()
        self._gone: list[int] = []

    def recall(self) -> None:
        """Learn what an earlier run parked."""
        self.ids = {each.message_id for each in self._ledger.parked()}

    def park(self, event: Pending) -> None:
        """Put an event aside."""
        self._added.append(write_parked(event, self._names[event.route]))
        self.ids.add(event.message_id)

    def bring_back(self, subject: str) -> list[Pending]:
        """Return parked events, to be tried again: of a user (`user:KEY`), one (`event:ID`) or `all`."""
        found = []
        for parked in self._ledger.parked():
            is_meant = subject in {"all", f"user:{parked.user_key}", f"event:{parked.message_id}"}
            # Where the configuration has no such route any more it stays parked.
            if is_meant and parked.position not in self._back and parked.route in self._names:
                self._back.add(parked.position)
                found.append(read_parked(parked, self._names.index(parked.route)))
        return found

    def park_again(self, event: Pending) -> None:
        """Note that an event that was brought back is parked once more; its record is there."""
        self._back.discard(event.position)

    def settle(self, event: Pending) -> None:
        """Note that an event that was brought back is settled."""
        self._back.discard(event.position)
        self._gone.append(event.position)
        self.ids.discard(event.message_id)

    def write(self) -> None:
        """Write it down, inside a transaction of the ledger's; then comes `written`."""
        for parked in self._added:
            self._ledger.park(parked)
        for position in self._gone:
            self._ledger.unpark(position)

    def written(self) -> None:
        """Forget what was written down."""
        self._added.clear()
        self._gone.clear()

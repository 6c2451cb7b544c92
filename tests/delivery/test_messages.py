"""Messages in hand: one that is delivered again is the same one, whether it is in hand or settled already."""

import itertools
from pathlib import Path

import pytest

from millrace.delivery.ledger import Ledger
from millrace.delivery.messages import Messages
from millrace.transforms.receipts import Ledger as Receipts

NOW_US = 1_795_608_000_000_000


class Hand:
    """Messages over a ledger, and what was acknowledged."""

    def __init__(self, path: Path) -> None:
        self.receipts = Receipts()
        self.ledger = Ledger(path)
        self.messages = Messages(self.ledger, self.receipts, 3_600, NOW_US)
        self.messages.recall(NOW_US)
        self._numbers = itertools.count(1)

    def deliver(self, *delivered: tuple[str, int]) -> list[bool]:
        """Deliver messages, as (envelope id, published); the ack id tells the id and which delivery it is."""
        first = self.receipts.open(
            [f"{name}#{next(self._numbers)}" for name, _ in delivered], [1] * len(delivered), 0.0, 0
        )
        return self.messages.enter([(name, at, first + n) for n, (name, at) in enumerate(delivered)])

    def route(self, receipt: int, events: int) -> None:
        """Let a message have so many events, or none."""
        message = self.messages.open[receipt]
        message.routed = message.left = events
        self.messages.close_unrouted([receipt])

    def save(self) -> list[str]:
        """Save; return what is acknowledged by it."""
        with self.ledger.writing():
            self.messages.write(NOW_US, NOW_US)
        self.messages.acknowledge(NOW_US)
        return self.receipts.take_ready()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def test_a_message_that_is_in_hand_is_not_read_again_and_each_delivery_is_acknowledged_with_it(path: Path):
    hand = Hand(path)
    assert hand.deliver(("7", 1), ("8", 1), ("7", 1)) == [True, True, False]
    hand.route(0, 2)
    hand.route(1, 0)
    assert hand.save() == ["8#2"]
    hand.messages.settle(hand.messages.open[0], "delivered")
    assert hand.save() == []
    assert hand.deliver(("7", 1)) == [False]
    hand.messages.settle(hand.messages.open[0], "dead")
    assert hand.deliver(("7", 1)) == [False]  # settled, and not written down yet
    assert hand.save() == ["7#1", "7#3", "7#4", "7#5"]
    assert hand.ledger.totals() == {"routed": 2, "delivered": 1, "dead": 1}
    assert hand.messages.open == {}


def test_a_message_that_was_settled_is_acknowledged_again_after_a_restart_too(path: Path):
    hand = Hand(path)
    hand.deliver(("7", 1), ("no number", 5))
    for receipt in (0, 1):
        hand.route(receipt, 1)
        hand.messages.settle(hand.messages.open[receipt], "delivered")
    hand.save()
    assert hand.deliver(("7", 1), ("7", 2)) == [False, True]  # a broker that lost its memory counts from 1 again
    hand.ledger.close()
    hand = Hand(path)
    assert hand.deliver(("no number", 5), ("7", 2), ("7", 1)) == [False, True, False]
    assert hand.save() == ["no number#1", "7#3"]
    assert hand.ledger.totals() == {"routed": 2, "delivered": 2, "repeats": 2}
    hand.ledger.close()


def test_a_message_that_cannot_be_read_is_acknowledged_counted_and_not_on_record(path: Path):
    hand = Hand(path)
    hand.deliver(("7", 1))
    hand.messages.fail(0)
    assert hand.save() == ["7#1"]
    assert hand.ledger.totals() == {"failed": 1}
    assert hand.deliver(("7", 1)) == [True]
    hand.ledger.close()

"""The shelf: on one node a batch stays where it is, and its ticket brings it back once."""

import threading

import pyarrow as pa
import pytest

from millrace.transforms.in_beam import RecordBatchCoder
from millrace.transforms.shelf import SHELF, LostTicketError, Shelf, is_ticket
from tests.support.batches import batch, event

BATCH = batch([event("a"), event("b", 1)])


@pytest.fixture
def _open_shelf():
    SHELF.open()
    yield
    SHELF.close()


def test_a_ticket_brings_its_own_batch_back_once():
    shelf = Shelf()
    tickets = [shelf.put(BATCH), shelf.put(BATCH.slice(1))]
    assert all(is_ticket(ticket) for ticket in tickets)
    assert shelf.take(tickets[1]) == BATCH.slice(1)
    assert shelf.take(tickets[0]) is BATCH
    assert len(shelf) == 0
    with pytest.raises(LostTicketError, match="come again when the job is started again"):
        shelf.take(tickets[0])


@pytest.mark.usefixtures("_open_shelf")
def test_while_it_is_open_the_coder_hands_out_tickets():
    coder = RecordBatchCoder()
    ticket = coder.encode(BATCH)
    assert len(ticket) == 16
    assert coder.decode(ticket) is BATCH
    assert len(SHELF) == 0


def test_while_it_is_closed_the_coder_writes_the_batch_and_no_stream_looks_like_a_ticket():
    coder = RecordBatchCoder()
    for each in (BATCH, BATCH.slice(0, 0), pa.record_batch({})):
        encoded = coder.encode(each)
        assert not is_ticket(encoded)
        assert coder.decode(encoded) == each
    assert coder.estimate_size(BATCH) == BATCH.nbytes


def test_what_was_written_before_it_opened_can_be_read():
    coder = RecordBatchCoder()
    encoded = coder.encode(BATCH)
    SHELF.open()
    try:
        assert coder.decode(encoded) == BATCH
    finally:
        SHELF.close()


def test_threads_share_it():
    shelf = Shelf()
    taken: list[pa.RecordBatch] = []

    def work() -> None:
        taken.extend(shelf.take(shelf.put(BATCH.slice(number % 2))) for number in range(200))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), len(shelf)) == (800, 0)

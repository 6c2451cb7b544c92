"""Commit: whatever comes twice, fails or dies, the accounts close, and acknowledged is what is safe."""

import contextlib
import dataclasses
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.sinks import commit
from millrace.sinks.storage import StorageError
from tests.support.batches import NOON_US, event
from tests.support.commits import WINDOW_US, Desk

FAILURES = ("archive", "duplicates")

USERS = ("ann", "bob", "eve")
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Step:
    """A window: what is published before it, what Pub/Sub delivers again beside it, and what goes wrong."""

    published: tuple[tuple[int, int, int, int], ...]  # id, content, user, tenths of a second into the window
    again: tuple[int, ...]  # numbers of places published before
    failing: str
    after: bool
    retried: bool
    restarts: bool
    written_ahead: bool
    duplicates_first: bool


steps = st.lists(
    st.builds(
        Step,
        published=st.lists(
            st.tuples(st.integers(0, 5), st.sampled_from([0, 0, 0, 1, 2]), st.integers(0, 2), st.integers(0, 49)),
            max_size=6,
        ).map(tuple),
        again=st.lists(st.integers(0, 99), max_size=5).map(tuple),
        failing=st.sampled_from(["", "", *FAILURES]),
        after=st.booleans(),
        retried=st.booleans(),
        restarts=st.sampled_from([False, False, True]),
        written_ahead=st.booleans(),
        duplicates_first=st.booleans(),
    ),
    max_size=6,
)


class Queue:
    """Pub/Sub, in miniature: what was published, by envelope, and what was acknowledged."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.acked: set[str] = set()

    def publish(self, number: int, published: tuple[tuple[int, int, int, int], ...]) -> list[Row]:
        """Publish events, two an envelope; return their rows."""
        new = [
            event(f"m{id_}", tenths / 10, user=USERS[user], envelope_id=f"e{number}-{place // 2}",
                  envelope_index=place % 2, properties=f'{{"content": {content}}}')
            for place, (id_, content, user, tenths) in enumerate(published)
        ]  # fmt: skip
        self.rows += new
        return new

    def envelopes(self, numbers: tuple[int, ...]) -> list[list[Row]]:
        """Return whole envelopes, as they are delivered again; acknowledged or not."""
        names = [self.rows[number % len(self.rows)]["envelope_id"] for number in numbers] if self.rows else []
        return [[row for row in self.rows if row["envelope_id"] == name] for name in names]

    def unacknowledged(self) -> list[Row]:
        return [row for row in self.rows if row["envelope_id"] not in self.acked]

    def places(self) -> list[tuple[str, int]]:
        return sorted((row["envelope_id"], row["envelope_index"]) for row in self.rows)

    def events(self) -> Counter[tuple[str, str]]:
        """Return the different events: by id and content."""
        return Counter({(row["message_id"], row["properties"]): 1 for row in self.rows})


def acknowledge(desk: Desk, queue: Queue, delivered: list[Row], *, safe: bool) -> None:
    """Check what of a window's deliveries may be acknowledged: all where both its commits are in; acknowledge it."""
    ready = [ack_id.partition("/")[2] for ack_id in desk.acked()]
    receipts = {(row["receipt"], row["envelope_id"]) for row in delivered}
    if safe:
        assert sorted(ready) == sorted(envelope for _, envelope in receipts)
    assert desk.ledger.open_messages == len(receipts) - len(ready)
    queue.acked.update(ready)


def run(desk: Desk, queue: Queue, number: int, step: Step) -> None:
    window_us = NOON_US + number * WINDOW_US
    parted = desk.deliver(queue.publish(number, step.published))
    delivered = [*parted, *(row for rows in queue.envelopes(step.again) for row in desk.deliver(rows))]
    with mock.patch.object(commit, "TRAVELLING_BYTES", 0 if step.written_ahead else 1 << 20):
        window = desk.prepare(delivered)
        safe = True
        try:
            with desk.failing(step.failing, after=step.after) if step.failing else contextlib.nullcontext():
                desk.commit(window, window_us, duplicates_first=step.duplicates_first)
        except StorageError:
            safe = step.retried
            if step.retried:
                desk.commit(window, window_us, duplicates_first=step.duplicates_first)
    acknowledge(desk, queue, delivered, safe=safe)
    if step.restarts or not safe:  # what is left unacknowledged comes again once its process is gone
        desk.restart()


def check_accounts(desk: Desk, queue: Queue) -> None:
    archived = desk.table("archive").to_pylist()
    known = [(row["duplicate_of"] or row["message_id"], row["properties"]) for row in archived]
    assert Counter(known) == queue.events()
    # The id itself is one's; the others' follow from id and content.
    assert Counter(row["message_id"] for row in archived if row["duplicate_of"] is None) == dict.fromkeys(
        {id_ for id_, _ in queue.events()}, 1
    )
    assert len({row["message_id"] for row in archived}) == len(archived)
    places = [(row["envelope_id"], row["envelope_index"]) for row in archived]
    copies = desk.table("duplicates").to_pylist()
    places += [(row["envelope_id"], row["envelope_index"]) for row in copies]
    assert sorted(places) == queue.places()
    assert desk.committer.archive.committed_totals().get("rows", 0) == len(archived)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(given_steps=steps)
def test_published_is_archived_and_duplicates_and_acknowledged_is_what_is_safe(given_steps: list[Step]):
    queue = Queue()
    with tempfile.TemporaryDirectory() as folder:
        desk = Desk(Path(folder))
        for number, step in enumerate(given_steps):
            run(desk, queue, number, step)
        last = Step((), (), "", False, False, False, False, False)
        desk.restart()
        left = desk.deliver(queue.unacknowledged())
        desk.commit(desk.prepare(left), NOON_US + len(given_steps) * WINDOW_US)
        acknowledge(desk, queue, left, safe=True)
        check_accounts(desk, queue)
        run(desk, queue, len(given_steps) + 1, dataclasses.replace(last, again=tuple(range(len(queue.rows)))))
        check_accounts(desk, queue)


letter_steps = st.lists(
    st.tuples(st.lists(st.integers(0, 8), min_size=1, max_size=6), st.sampled_from(["", "before", "after", "restart"])),
    max_size=6,
)


@settings(max_examples=30, deadline=None)
@given(given_steps=letter_steps)
def test_every_dead_letter_comes_in_once(given_steps: list[tuple[list[int], str]]):
    published: set[int] = set()
    with tempfile.TemporaryDirectory() as folder:
        desk = Desk(Path(folder))
        for number, (envelopes, trouble) in enumerate(given_steps):
            published |= set(envelopes)
            rows = [event(f"m{envelope}", 1) for envelope in envelopes]
            if trouble in {"before", "after"}:
                try:
                    with desk.failing("dead_letters", after=trouble == "after"):
                        desk.refuse(*rows)
                except StorageError:
                    assert desk.acked() == []
            elif trouble:
                desk.restart()
            desk.refuse(*rows, window_us=NOON_US + number * WINDOW_US)
            assert {ack_id.partition("/")[2] for ack_id in desk.acked()} == {row["envelope_id"] for row in rows}
        assert [id_ for id_, _, _ in desk.places("dead_letters")] == sorted(f"m{number}" for number in published)

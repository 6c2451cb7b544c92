"""Resolve: each row gets the key of its moment, and nothing is copied that need not be."""

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from millrace.transforms.batches import shard_of
from millrace.transforms.link import IDENTIFY, Link, LinkRule, Links
from millrace.transforms.link_store import LinkStore
from millrace.transforms.order import release
from millrace.transforms.resolve import Resolved, known_keys, resolve, split
from tests.support.batches import NOON_US, batch, event
from tests.support.people import keys_by_the_book

RULE = LinkRule()
SECOND_US = 1_000_000


def link(at_s: float, id_: str, user_id: str) -> Link:
    at_us = NOON_US + round(at_s * SECOND_US)
    return Link(at_us, id_, user_id, f"m{at_s}", "shop", "e", 0, IDENTIFY, at_us)


def linked(*links: Link, rule: LinkRule = RULE) -> Links:
    found = Links(rule)
    for each in sorted(links):
        found.apply(each)
    return found


def released(*rows: dict[str, Any]) -> pa.RecordBatch:
    (piece,) = release(batch(rows), wait_us=0, window_us=60 * SECOND_US, shards=1)
    return piece.batch


def addresses(given: pa.RecordBatch) -> dict[str, list[int | None]]:
    return {name: [buffer and buffer.address for buffer in given.column(name).buffers()] for name in given.schema.names}


def test_the_key_is_that_of_the_moment_and_says_since_when():
    rows = [event("before", 1, user="web"), event("login", 2, user="ann"), event("after", 3, user="web")]
    found = resolve(released(*rows), linked(link(2, "web", "ann"), link(2.5, "web", "bob")), 8).batch
    assert found.column("message_id").to_pylist() == ["before", "login", "after"]
    assert found.column("user_key").to_pylist() == ["web", "web", "bob"]
    times = found.column("linked_at").cast(pa.int64()).to_pylist()
    assert times == [None, NOON_US + 2 * SECOND_US, NOON_US + 2_500_000]


def test_where_nobody_is_linked_the_batch_itself_goes_on():
    given = released(event("1", 1, user="ann"), event("2", 2, user="bob"))
    found = resolve(given, linked(link(0, "web", "eve")), 8)
    assert found.batch.select(given.schema.names).equals(given)
    assert addresses(found.batch.select(given.schema.names)) == addresses(given)
    assert found.batch.column("linked_at").null_count == 2


def test_only_the_key_is_written_anew():
    given = released(event("1", 1, user="ann"), event("2", 2, user="web"))
    found = resolve(given, linked(link(0, "web", "ann")), 8)
    others = [name for name in given.schema.names if name != "user_key"]
    assert addresses(found.batch.select(others)) == addresses(given.select(others))
    assert found.batch.column("user_key").to_pylist() == ["web", "web"]
    (web,) = shard_of(pa.array(["web"]), 8).tolist()
    for first in (web, web + 1):
        ((shard, whole),) = split(found, first)
        assert (shard, whole is found.batch) == (web, True)


def test_rows_go_to_the_shards_of_their_keys_each_once():
    given = released(*(event(str(number), number / 10, user=f"u{number % 7}") for number in range(50)))
    shards = shard_of(given.column("user_key"), 4)
    found = dict(split(Resolved(given, shards), 2))
    assert sorted(found) == sorted(set(shards.tolist()))
    for shard, part in found.items():
        assert part.equals(given.filter(pa.array(shards == shard)))


def test_events_are_spread_by_the_last_key_known():
    store = LinkStore(RULE)
    unknown = pa.array(["web", "ann", "web"])
    assert known_keys(unknown, store, NOON_US + 9 * SECOND_US) is unknown
    store.enter_links([link(1, "web", "ann")])
    assert known_keys(unknown, store, NOON_US + 9 * SECOND_US) is unknown  # not in force yet
    store.settle(NOON_US + 5 * SECOND_US, 5 * SECOND_US)
    assert known_keys(unknown, store, NOON_US + 9 * SECOND_US).to_pylist() == ["web", "web", "web"]


ids = st.sampled_from(["web", "phone", "ann", "bob"])
links = st.builds(link, st.integers(0, 20), ids, ids).filter(lambda each: each.id != each.user_id)
events = st.lists(st.tuples(st.integers(0, 20), ids), min_size=1, max_size=30)


@given(given_links=st.lists(links, max_size=10), asked=events)
def test_every_row_gets_the_key_of_the_book_and_its_shard(given_links, asked):
    rows = released(*(event(f"m{place}", at_s, user=id_) for place, (at_s, id_) in enumerate(asked)))
    found = resolve(rows, linked(*given_links), 5)
    times = [NOON_US + at_s * SECOND_US for at_s, _ in asked]
    book = keys_by_the_book(given_links, list(zip(times, (id_ for _, id_ in asked), strict=True)))
    place = {f"m{number}": number for number in range(len(asked))}
    order = [place[id_] for id_ in found.batch.column("message_id").to_pylist()]
    assert found.batch.column("user_key").to_pylist() == [book[times[at], asked[at][1]] for at in order]
    assert np.array_equal(found.shards, shard_of(found.batch.column("user_key"), 5))


def test_a_link_that_ends_among_the_events_ends_for_those_after_it():
    rule = LinkRule(remember_s=10)
    rows = released(event("in force", 10, user="ann"), event("forgotten", 10.1, user="ann"))
    found = resolve(rows, linked(link(0, "web", "ann"), rule=rule), 8).batch
    assert found.column("user_key").to_pylist() == ["web", "ann"]
    assert found.column("linked_at").is_valid().to_pylist() == [True, False]

"""Links: which events are some, and whose sequence an id belongs to, whenever it is asked."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.schemas import identity
from millrace.transforms.link import ALIAS, IDENTIFY, Link, LinkRule, Links, links_of
from millrace.transforms.link_store import LinkStore, entries_of, put_entries, records_of
from millrace.transforms.order import release
from tests.support.batches import NOON_US, batch, event
from tests.support.people import keys_by_the_book

RULE = LinkRule()
DAY_US = 86_400_000_000


def link(at_us: int, id_: str, user_id: str, kind: str = IDENTIFY) -> Link:
    return Link(at_us, id_, user_id, f"m{at_us}-{id_}-{user_id}", "shop", "e", 0, kind, at_us)


def keys_after(*links: Link, rule: LinkRule = RULE, at_us: int | None = None) -> dict[str, str]:
    """Return the key of each id that the links name, after the last of them."""
    found = Links(rule)
    for each in links:
        found.apply(each)
    at_us = links[-1].at_us if at_us is None else at_us
    entries = {id_: found.at(id_, at_us) for each in links for id_ in (each.id, each.user_id)}
    return {id_: id_ if entry is None else entry.user_key for id_, entry in entries.items()}


def test_at_a_first_login_the_anonymous_sequence_goes_on():
    assert keys_after(link(1, "web", "ann")) == {"web": "web", "ann": "web"}


def test_a_second_device_joins_the_person_s_sequence():
    assert keys_after(link(1, "web", "ann"), link(2, "phone", "ann")) == {"web": "web", "ann": "web", "phone": "web"}


def test_a_second_person_on_a_shared_device_has_a_sequence_of_their_own():
    shared = [link(1, "web", "ann"), link(2, "web", "bob")]
    assert keys_after(*shared) == {"web": "bob", "ann": "web", "bob": "bob"}
    assert keys_after(*shared, link(3, "web", "ann")) == {"web": "web", "ann": "web", "bob": "bob"}


def test_an_alias_gives_a_new_id_the_old_one_s_key_and_joins_two_that_are_known():
    assert keys_after(link(1, "web", "a@x"), link(2, "a@x", "ann", ALIAS)) == {"web": "web", "a@x": "web", "ann": "web"}
    known = [link(1, "web", "a@x"), link(2, "phone", "ann"), link(3, "a@x", "ann", ALIAS)]
    assert keys_after(*known) == {"web": "web", "a@x": "phone", "phone": "phone", "ann": "phone"}


def test_a_link_changes_nothing_before_it_and_the_same_again_nothing_after():
    found = Links(RULE)
    assert [(each.id, each.user_id, each.user_key) for each in found.apply(link(10, "web", "ann"))] == [
        ("web", "ann", "web"), ("ann", "ann", "web"),
    ]  # fmt: skip
    assert (found.at("web", 9), found.at("ann", 9)) == (None, None)
    assert found.apply(link(10, "web", "ann")) == []
    assert found.apply(link(11, "web", "ann")) == []


@pytest.mark.parametrize("first", ["tim", "tom"])
def test_links_of_one_microsecond_that_come_again_are_on_record_once(first: str):
    tied = [link(5, "kiosk", first), link(5, "kiosk", "una")]
    found = Links(RULE)
    rows = records_of(found.apply_all([tied[1], tied[0]])).to_pylist()
    assert [(row["id"], row["user_id"]) for row in rows] == [("kiosk", "una"), (first, first), ("una", "una")]
    assert found.apply_all(tied) == []
    entry = found.at("kiosk", 5)
    assert entry is not None
    assert entry.user_id == "una"


ids = st.sampled_from(["web", "phone", "tv", "ann", "bob", "eve"])
kinds = st.sampled_from([IDENTIFY, IDENTIFY, ALIAS])
links = st.builds(link, st.integers(0, 30), ids, ids, kinds).filter(lambda each: each.id != each.user_id)
WINDOW_US = 5


@given(
    given_links=st.lists(links, max_size=14),
    asked=st.lists(st.tuples(st.integers(0, 34), ids)),
    watermarks=st.sets(st.sampled_from(range(WINDOW_US, 35, WINDOW_US))),
    chance=st.randoms(use_true_random=False),
)
def test_links_entered_in_any_order_and_more_than_once_give_each_id_the_key_of_the_book(
    given_links, asked, watermarks, chance
):
    """On one node: links come as messages do; a window leaves once its own are in, but in any order."""
    expected = keys_by_the_book(given_links, asked)
    store = LinkStore(RULE)
    coming = given_links + [each for each in given_links if chance.random() < 0.3]
    chance.shuffle(coming)
    changes, left = [], list(range(WINDOW_US, 36, WINDOW_US))
    for watermark in [*sorted(watermarks), 35]:
        early = [each for each in coming if each.at_us < watermark or chance.random() < 0.3]
        coming = [each for each in coming if each not in early]
        store.enter_links(early)
        leaving = [end for end in left if end <= watermark]
        left = [end for end in left if end > watermark]
        chance.shuffle(leaving)
        for end in leaving:
            store.settle(end, WINDOW_US)
            changes += store.take_changes(end - WINDOW_US)
            for at_us, id_ in asked:
                if end - WINDOW_US <= at_us < end:
                    assert key_of(store.links, id_, at_us) == expected[at_us, id_]
    assert len(set(changes)) == len(changes)
    told = Links(RULE)  # as a new process reads it back from the table
    rows = records_of(changes)
    on_record = [(row["id"], row["linked_at"]) for row in rows.to_pylist()]
    assert len(set(on_record)) == len(on_record)
    put_entries(told, rows)
    assert {(at_us, id_): key_of(told, id_, at_us) for at_us, id_ in asked} == expected


def key_of(found: Links, id_: str, at_us: int) -> str:
    entry = found.at(id_, at_us)
    return id_ if entry is None else entry.user_key


@given(given_links=st.lists(links, max_size=10), first=st.integers(0, 34), length=st.integers(0, 34),
       remember_us=st.integers(2, 40))  # fmt: skip
def test_what_is_in_force_during_a_time_is_what_is_in_force_at_each_moment_of_it(
    given_links, first, length, remember_us
):
    found = Links(LinkRule(remember_s=remember_us / 1_000_000))
    for each in sorted(given_links):
        found.apply(each)
    for id_ in ("web", "ann"):
        spans = found.during(id_, first, first + length)
        assert spans[0][0] == first
        assert [since for since, _ in spans] == sorted(since for since, _ in spans)
        for at_us in range(first, first + length + 1):
            entry = [entry for since, entry in spans if since <= at_us][-1]
            assert entry == found.at(id_, at_us)


def test_a_link_is_forgotten_in_time_unless_it_is_said_again():
    rule = LinkRule(remember_s=10 * 86_400)
    first, again = link(0, "web", "ann"), link(6 * DAY_US, "web", "ann")
    assert keys_after(first, rule=rule, at_us=10 * DAY_US) == {"web": "web", "ann": "web"}
    assert keys_after(first, rule=rule, at_us=10 * DAY_US + 1) == {"web": "web", "ann": "ann"}
    assert keys_after(first, again, rule=rule, at_us=16 * DAY_US) == {"web": "web", "ann": "web"}
    found = Links(rule)
    found.apply(first)
    assert found.apply(link(5 * DAY_US, "web", "ann")) == []  # not yet half of the time
    assert [each.id for each in found.apply(again)] == ["web", "ann"]
    found.sweep(16 * DAY_US)
    assert len(found) == 2
    found.sweep(30 * DAY_US)
    assert len(found) == 0


def test_an_id_that_many_users_log_in_with_keeps_no_more_than_an_hour_of_them():
    found = Links(RULE)
    for second in range(10_000):
        found.apply(link(second * 1_000_000, "constant", f"user-{second}"))
    assert max(len(entries) for _, entries in found.items()) == 3_601
    assert found.at("constant", 9_999_000_000) is not None


def test_all_that_is_known_comes_through_its_columns():
    found, again = Links(RULE), Links(RULE)
    for each in (link(1, "web", "ann"), link(2, "web", "bob"), link(3, "ann", "eve", ALIAS)):
        found.apply(each)
    put_entries(again, entries_of(found))
    assert list(again.items()) == list(found.items())
    assert len(again) == 4


def released(*rows: dict[str, Any]) -> list[Link]:
    (piece,) = release(batch(rows), wait_us=0, window_us=60_000_000, shards=1)
    return links_of(piece.batch, RULE)


def test_an_identify_with_both_ids_and_an_alias_with_its_previous_id_are_links():
    both: dict[str, Any] = {"user_id": "ann", "anonymous_id": "web"}
    found = released(
        event("1", 1, type="identify", envelope_index=3, **both),
        event("2", 2, type="alias", rest='{"previousId":" a@x ","integrations":{}}', **both),
        event("3", 3, type="alias", rest='{"previousId":17}', **both),
    )
    assert found == [
        Link(NOON_US + 1_000_000, "web", "ann", "1", "shop", "e-1", 3, IDENTIFY, NOON_US + 1_000_000),
        Link(NOON_US + 2_000_000, "a@x", "ann", "2", "shop", "e-2", 0, ALIAS, NOON_US + 2_000_000),
        Link(NOON_US + 3_000_000, "17", "ann", "3", "shop", "e-3", 0, ALIAS, NOON_US + 3_000_000),
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"type": "track", "user_id": "ann", "anonymous_id": "web"},
        {"type": "identify", "user_id": "ann"},
        {"type": "identify", "anonymous_id": "web"},
        {"type": "identify", "user_id": "ann", "anonymous_id": "ann"},
        {"type": "alias", "user_id": "ann", "anonymous_id": "web"},
        {"type": "alias", "user_id": "ann", "rest": '{"previousId":null}'},
        {"type": "alias", "user_id": "ann", "rest": '{"previousId":" "}'},
        {"type": "alias", "user_id": "ann", "rest": '{"previousId":["web"]}'},
        {"type": "alias", "user_id": "ann", "rest": '{"previousId":"ann"}'},
    ],
)
def test_what_does_not_name_two_ids_is_no_link(row: dict[str, Any]):
    assert released(event("1", **row)) == []


def test_only_the_types_of_the_rule_link():
    (piece,) = release(
        batch([event("1", type="identify", user_id="ann", anonymous_id="web"),
               event("2", type="alias", user_id="ann", rest='{"previousId":"web"}')]),
        wait_us=0, window_us=5_000_000, shards=1,
    )  # fmt: skip
    assert [each.kind for each in links_of(piece.batch, LinkRule(link_on=(ALIAS,)))] == [ALIAS]


def test_a_change_is_a_row_of_the_table():
    changes = Links(RULE).apply(link(NOON_US, "web", "ann"))
    records = records_of(changes)
    assert records.schema == identity.BATCH
    assert [(row["id"], row["user_id"], row["user_key"], row["receipt"]) for row in records.to_pylist()] == [
        ("web", "ann", "web", -1), ("ann", "ann", "web", -1),
    ]  # fmt: skip
    assert records_of([]).num_rows == 0

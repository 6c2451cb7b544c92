"""Touch: what counts as one, which is first and which last, and that both hold however events arrive or come again."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.transforms.batches import concat
from millrace.transforms.enrich.touch import FIELDS, Touch
from millrace.transforms.steps import Users, with_columns
from tests.support.along import Row, in_order, micros, touches_of, windows
from tests.support.batches import NOON_US, event

MINUTE = 60.0
HOUR = 3_600.0
DAY = 86_400.0
NAMES = [field.name for field in FIELDS]


def through(step: Touch, batches: Sequence[pa.RecordBatch], users: Users | None = None) -> list[Row]:
    """Return the rows of batches after the step, one batch after the other."""
    users = Users() if users is None else users
    return [row for each in batches for row in step.apply(each, users).batch.to_pylist()]


def sources(rows: Sequence[Row], step: Touch | None = None) -> dict[str, tuple[str | None, str | None]]:
    """Return by message_id the sources of the first and the last touch."""
    return told(through(step or Touch(), windows(rows)))


def told(rows: Sequence[Row]) -> dict[str, tuple[str | None, str | None]]:
    return {row["message_id"]: (row["first_touch_source"], row["last_touch_source"]) for row in rows}


def came(message_id: str, at_s: float, source: str | None, arrived_s: float | None = None, **more: Any) -> Row:
    return event(message_id, at_s, arrived_s=arrived_s, context_campaign_source=source, **more)


def referred(
    referrer: str | None, page: str | None = "https://www.shop.example/cart", step: Touch | None = None
) -> Any:
    """Return the referrer of an event's touch; None where it is none."""
    rows = windows([event("1", context_page_referrer=referrer, context_page_url=page)])
    (row,) = through(step or Touch(), rows)
    assert (row["last_touch_at"] is None) == (row["last_touch_referrer"] is None)
    return row["last_touch_referrer"]


def test_the_first_stays_the_last_follows_and_direct_visits_change_neither():
    rows = [event("0"), came("1", 1, "mail"), event("2", 2), came("3", 3, "ads"), event("4", 4), event("5", HOUR)]
    rows += [event("other", 2, user="bob")]
    assert sources(rows) == {
        "0": (None, None), "1": ("mail", "mail"), "2": ("mail", "mail"), "3": ("mail", "ads"), "4": ("mail", "ads"),
        "5": ("mail", "ads"), "other": (None, None),
    }  # fmt: skip


def test_a_touch_is_told_in_full():
    page: Row = {"context_page_url": "https://shop.example/", "context_page_referrer": "https://www.news.example/a?b#c"}
    campaign: Row = {f"context_campaign_{name}": f"the {name}" for name in ("source", "medium", "name")}
    rows = through(Touch(), windows([event("1", 1, **page, **campaign), event("2", 2)]))
    for row in rows:
        for which in ("first", "last"):
            assert micros(row[f"{which}_touch_at"]) == NOON_US + 1_000_000
            found = [row[f"{which}_touch_{name}"] for name in ("source", "medium", "campaign", "referrer")]
            assert found == ["the source", "the medium", "the name", "news.example"]


def test_a_new_touch_replaces_the_last_as_a_whole():
    rows = [event("1", 0, context_campaign_source="mail", context_campaign_name="may"), came("2", 1, "ads")]
    assert [row["last_touch_campaign"] for row in through(Touch(), windows(rows))] == ["may", None]


@pytest.mark.parametrize("blank", ["", "  "])
def test_blank_texts_are_no_campaign(blank: str):
    assert sources([came("1", 0, blank, context_campaign_name=blank)]) == {"1": (None, None)}


@pytest.mark.parametrize(
    ("referrer", "page", "host"),
    [
        ("https://www.google.com/", "https://shop.example/", "google.com"),
        ("https://WWW.Google.com:443/search?q=x", "https://shop.example/", "google.com"),
        ("android-app://com.google.android.gm/", None, "com.google.android.gm"),
        ("https://user:pass@news.example?x", None, "news.example"),
        ("//news.example/a", "https://shop.example/", "news.example"),
        ("http://[2001:db8::1]:80/x", "https://shop.example/", "[2001:db8::1]"),
        ("https://notshop.example/", "https://shop.example/", "notshop.example"),
        ("https://blog.example.com/", "https://shop.example.com/", "blog.example.com"),
        ("https://shop.example/a", "https://shop.example/b", None),
        ("https://www.shop.example/a", "https://shop.example:8080/b", None),
        ("https://m.shop.example/a", "https://shop.example/b", None),
        ("https://shop.example/a", "https://m.shop.example/b", None),
        ("", "https://shop.example/", None),
        (None, "https://shop.example/", None),
        ("no URL", None, None),
        ("a/b/c", None, None),
        ("https:///path", None, None),
    ],
)
def test_a_referrer_of_another_site_is_a_touch(referrer: str | None, page: str | None, host: str | None):
    assert referred(referrer, page) == host


def test_hosts_can_be_named_internal_with_their_subdomains():
    step = Touch(internal_hosts=("www.pay.example", "id.example"))
    assert referred("https://pay.example/done", step=step) is None
    assert referred("https://eu.pay.example/done", step=step) is None
    assert referred("https://play.example/", step=step) == "play.example"


def test_columns_of_enrichments_come_first_where_they_are_in_the_batch():
    (rows,) = windows([came("1", 0, "sdk"), came("2", 0.1, "sdk"), event("3", 0.2), event("4", 0.3)])
    fields = [pa.field(name, pa.string()) for name in ("campaign_source", "click_id", "referrer_class")]
    columns = [["url", None, None, None], [None, None, None, "gclid"], [None] * 4]
    rows = with_columns(rows, fields, columns)
    found = through(Touch(), [rows])
    assert [row["last_touch_source"] for row in found] == ["url", "sdk", "sdk", None]
    assert micros(found[3]["last_touch_at"]) == NOON_US + 300_000


def test_a_referrer_that_an_enrichment_calls_internal_is_none():
    page: Row = {"context_page_referrer": "https://a.example/", "context_page_url": "https://b.example/"}
    (rows,) = windows([event("1", 0, **page), event("2", 0.1, **page)])
    rows = with_columns(rows, [pa.field("referrer_class", pa.string())], [["internal", "search"]])
    assert [row["last_touch_referrer"] for row in through(Touch(), [rows])] == [None, "a.example"]


def test_a_late_touch_is_last_only_if_it_occurred_after_the_last_and_first_only_if_it_is_the_first_in_the_order():
    rows = [came("1", HOUR, "mail"), came("late", 0, "ads", 2 * HOUR), event("2", 3 * HOUR)]
    rows += [came("late too", 1.5 * HOUR, "social", 4 * HOUR)]
    assert sources(rows) == {
        "1": ("mail", "mail"), "late": ("mail", "mail"), "2": ("mail", "mail"), "late too": ("mail", "social"),
    }  # fmt: skip


def test_texts_are_cut_so_that_memory_is_bounded():
    users = Users()
    (row,) = through(Touch(), windows([came("1", 0, "ä" * 10_000)]), users)
    assert row["first_touch_source"] == "ä" * 200
    assert len(users.get("ann")) < 450


def test_users_without_a_touch_are_not_remembered_and_of_the_others_no_more_than_asked_for():
    users = Users()
    rows = [event(f"m{number}", number, user=f"u{number}") for number in range(100)]
    through(Touch(), windows(rows), users)
    assert len(users) == 0
    rows = [came(f"m{number}", number, "ads", user=f"u{number}") for number in range(100)]
    through(Touch(remember_users=16), windows(rows), users)
    assert 14 <= len(users) <= 16
    assert users.get("u99") is not None


def test_after_the_time_of_remembering_the_next_touch_is_a_first_one_however_it_was_swept():
    step = Touch(remember_days=1)
    rows = [
        came("1", 0, "mail"),
        event("2", DAY),
        event("3", 2 * DAY),
        event("4", 3 * DAY + 1),
        came("5", 3.1 * DAY, "ads"),
    ]
    assert sources(rows, step) == {
        "1": ("mail", "mail"), "2": ("mail", "mail"), "3": ("mail", "mail"), "4": (None, None), "5": ("ads", "ads"),
    }  # fmt: skip


def test_a_batch_without_rows_and_the_declared_types():
    (rows,) = windows([came("1", 0, "mail"), event("2", 1)])
    for each in (rows, rows.slice(1), rows.slice(0, 0)):
        done = Touch().apply(each, Users()).batch
        assert [done.schema.field(name) for name in NAMES] == list(FIELDS)
        done.validate(full=True)


MOMENTS = st.integers(0, 30).map(lambda step: step * 10 * MINUTE)
DELAYS = st.sampled_from([0.0, 0.0, 5.0, 40 * MINUTE, 3 * HOUR])


@st.composite
def histories(draw: st.DrawFn) -> list[Row]:
    sources = st.sampled_from([None, None, "mail", "ads", "social"])
    drawn = draw(
        st.lists(st.tuples(st.sampled_from(["ann", "bob", "eve"]), MOMENTS, DELAYS, sources), min_size=1, max_size=25)
    )
    return [
        came(f"m{number}", at, source, at + delay, user=user) for number, (user, at, delay, source) in enumerate(drawn)
    ]


@settings(deadline=None)
@given(histories(), st.sampled_from([5.0, 3_600.0, 1e6]))
def test_it_is_what_the_rule_says_event_by_event(rows: list[Row], window_s: float):
    ordered = windows(rows, window_s=window_s)
    expected = touches_of(row for each in ordered for row in each.to_pylist())
    assert told(through(Touch(), ordered)) == expected


@settings(deadline=None)
@given(histories(), st.permutations(range(25)), st.sampled_from([1.0, 5.0, 3_600.0, 1e6]))
def test_neither_the_order_of_arrival_nor_the_windows_matter(rows: list[Row], places: list[int], window_s: float):
    shuffled = [rows[place] for place in places if place < len(rows)]
    expected = in_order(through(Touch(), windows(rows)))
    assert in_order(through(Touch(), windows(shuffled, window_s=window_s))) == expected


@settings(deadline=None)
@given(histories(), st.data())
def test_a_process_that_dies_after_any_window_goes_on_as_if_it_had_not_whatever_comes_again(
    rows: list[Row], data: st.DataObject
):
    step = Touch()
    ordered = windows(rows)
    cut = data.draw(st.integers(0, len(ordered)))
    back = data.draw(st.integers(0, cut))
    expected = through(step, ordered)
    archived = [step.apply(each, users).batch for users in [Users()] for each in ordered[:cut]]
    users = Users()
    if archived:
        known = pa.table(concat(archived)).select([*step.recalls, "user_key", "order_index", "released_at"])
        by = [("user_key", "ascending"), ("order_index", "ascending")]
        step.recall(known.sort_by(by).combine_chunks().to_batches()[0], users)
    before = {user: users.get(user) for user in ("ann", "bob", "eve")}
    through(step, ordered[back:cut], users)
    after = {user: users.get(user) for user in ("ann", "bob", "eve")}
    assert through(step, ordered[cut:], users) == expected[sum(each.num_rows for each in archived) :]
    assert after == before

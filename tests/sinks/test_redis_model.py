"""Profiles against a plain Python reference: resends, any splits, events without order, new ledgers."""

import asyncio
import dataclasses
import itertools
import json
from collections.abc import Sequence
from typing import Any

import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millrace.sinks.redis import Redis
from millrace.sinks.sink import DELIVERED
from tests.support.deliveries import Remembered, archived, delivery
from tests.support.redis import RedisServer

_prefixes = itertools.count()
COUNTED = ("Order Completed",)
USERS = ("ann", "bo", "cy")


class Reference:
    """What profiles have to say when each event is applied once, in the order in which it is first delivered."""

    def __init__(self) -> None:
        self.profiles: dict[str, dict[str, str]] = {}
        self._applied: set[str] = set()
        self._said: dict[tuple[str, str], str] = {}

    def apply(self, row: dict[str, Any]) -> None:
        if row["message_id"] in self._applied:
            return
        self._applied.add(row["message_id"])
        profile = self.profiles.setdefault(row["user_key"], {})
        at = f"2026-11-25T12:00:{row['at_s']:02}.000000Z"
        for name in ["events", f"type:{row['type']}", *([f"event:{row['event']}"] if row["event"] in COUNTED else [])]:
            profile[name] = str(int(profile.get(name, "0")) + 1)
        profile["first_seen"] = min(at, profile.get("first_seen", at))
        if at >= profile.get("last_seen", ""):
            profile["last_seen"] = at
            profile["last_event"] = row["event"] or row["type"]
        if row["type"] == "identify":
            for name, value in json.loads(row["traits"]).items():
                if at >= self._said.get((row["user_key"], name), ""):
                    self._said[row["user_key"], name] = at
                    profile.pop(f"trait:{name}", None)
                    if value is not None:
                        profile[f"trait:{name}"] = value if isinstance(value, str) else json.dumps(value)


@dataclasses.dataclass
class Story:
    """Events of some users, and how they are delivered.

    Attributes:
        rows: the events, in the order of the queue; each knows whether it is ordered.
        deliveries: the rows of each, or None: from here on a new ledger, whose queue begins at the archive's start.
    """

    rows: list[dict[str, Any]]
    deliveries: list[list[int] | None]


_values = st.one_of(
    st.none(), st.sampled_from(["pro", "", "é\0"]), st.integers(-5, 5), st.lists(st.booleans(), max_size=2)
)
_traits = st.dictionaries(st.sampled_from(["plan", "age", "a b"]), _values, max_size=3)


@st.composite
def _stories(draw: st.DrawFn) -> Story:
    rows = []
    for number in range(draw(st.integers(1, 14))):
        kind = draw(st.sampled_from(["track", "identify", "page"]))
        at_s = draw(st.integers(0, 4))
        rows.append(
            archived(
                f"m{number}",
                at_s,
                user=draw(st.sampled_from(USERS)),
                type=kind,
                event=draw(st.sampled_from(["Order Completed", "Home", None])) if kind != "identify" else None,
                traits=json.dumps(draw(_traits)) if kind == "identify" else None,
                order_index=number * 1_000,
            )
            | {"at_s": at_s, "is_ordered": draw(st.integers(0, 3)) > 0}
        )
    queues = [[n for n, row in enumerate(rows) if row["is_ordered"] and row["user_key"] == user] for user in USERS]
    loose = [n for n, row in enumerate(rows) if not row["is_ordered"]]
    reached, waiting = [0] * len(USERS), set(loose)
    deliveries: list[list[int] | None] = []
    for _ in range(draw(st.integers(0, 8))):
        if draw(st.integers(0, 9)) == 0:
            deliveries.append(None)
        chosen: list[int] = []
        for user, queue in enumerate(queues):  # of each user a run that goes on from, or before, where it was
            start = draw(st.integers(max(0, reached[user] - 3), reached[user]))
            end = draw(st.integers(start, min(len(queue), start + 4)))
            chosen += queue[start:end]
            reached[user] = max(reached[user], end)
        if loose:
            of_loose = draw(st.lists(st.sampled_from(loose), max_size=3))
            chosen += of_loose
            waiting -= set(of_loose)
        if chosen:
            deliveries.append(chosen)
    rest = [row for at, queue in zip(reached, queues, strict=True) for row in queue[at:]] + sorted(waiting)
    if rest:
        deliveries.append(rest)
    return Story(rows, deliveries)


async def _tell(sink: Redis, story: Story, again: Sequence[int]) -> None:
    """Deliver a story; some deliveries are offered once more, as after an answer that was lost."""
    ledgers = 0
    await sink.open(Remembered())
    try:
        for number, chosen in enumerate(story.deliveries):
            if chosen is None:
                ledgers += 1
                await sink.open(Remembered())
                continue
            # Each new ledger numbers from lower on: positions of two of them cannot be compared.
            positions = [1_000_000 - 10_000 * ledgers + row for row in chosen]
            rows = [story.rows[row] for row in chosen]
            each = delivery(rows, positions, is_ordered=[row["is_ordered"] for row in rows])
            for _ in range(2 if number in again else 1):
                assert await sink.deliver(each) == [DELIVERED] * len(rows)
    finally:
        await sink.close()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(story=_stories(), again=st.lists(st.integers(0, 10), max_size=4))
def test_profiles_are_those_of_the_reference(redis_server: RedisServer, story: Story, again: list[int]):
    sink = Redis(redis_server.url, prefix=f"model{next(_prefixes)}:", counters=COUNTED)
    reference = Reference()
    for chosen in story.deliveries:
        for row in chosen or ():
            reference.apply(story.rows[row])
    asyncio.run(_tell(sink, story, again))
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as asking:
        found = {user: asking.hgetall(f"{sink.prefix}{user}") for user in USERS}
    assert {user: profile for user, profile in found.items() if profile} == reference.profiles

"""The sink redis with a real server: what a profile says, and that each event is in it once."""

# ruff: noqa: S106  passwords are references

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pyarrow as pa
import pytest
import redis

from millrace.sinks.redis import BOOKS, IDS, Redis
from millrace.sinks.sink import DELIVERED, CannotOpenSinkError, Fault, Rejected, SinkDownError
from tests.support.deliveries import Remembered, archived, delivery
from tests.support.redis import RedisServer

_numbers = itertools.count()
T = "2026-11-25T12:00:0"


@pytest.fixture
def prefix() -> str:
    """A prefix that no other test has."""
    return f"p{next(_numbers)}:"


@contextlib.contextmanager
def _asking(server: RedisServer) -> Any:
    asking = redis.Redis.from_url(server.url, decode_responses=True)
    with contextlib.closing(asking):
        yield asking


@contextlib.asynccontextmanager
async def _opened(sink: Redis, memory: Remembered | None = None) -> AsyncIterator[Redis]:
    await sink.open(Remembered() if memory is None else memory)
    try:
        yield sink
    finally:
        await sink.close()


def _run(sink: Redis, body: Callable[[Redis], Awaitable[Any]], memory: Remembered | None = None) -> Any:
    async def main() -> Any:
        async with _opened(sink, memory):
            return await body(sink)

    return asyncio.run(main())


def _deliver(sink: Redis, *deliveries: Any, memory: Remembered | None = None) -> Any:
    async def body(sink: Redis) -> Any:
        return [await sink.deliver(each) for each in deliveries]

    return _run(sink, body, memory)


def test_a_profile_says_who_a_user_is_and_what_they_did(redis_server, prefix):
    sink = Redis(redis_server.url, prefix=prefix, counters=("Order Completed",))
    given = (
        '{"plan": "pro", "email": "a@x.example", "visits": 7.50, "vip": true, "tags": ["a", {"b": 1}], "phone": null}'
    )
    rows = [
        archived("m1", 1, event="Product Viewed"),
        archived("m2", 2, type="identify", traits=given),
        archived("m3", 3, event="Order Completed", traits='{"not": "an identify"}'),
        archived("m4", 0, user="bo", type="page", event="Home"),
        archived("m5", 4, event="Order Completed"),
        archived("m6", 5, type="identify", traits='{"plan": "free", "vip": null}'),
    ]
    assert _deliver(sink, delivery(rows)) == [[DELIVERED] * 6]
    with _asking(redis_server) as asking:
        assert sorted(asking.scan_iter(f"{prefix}*")) == [f"{prefix}ann", f"{prefix}bo"]
        assert asking.hgetall(f"{prefix}ann") == {
            "first_seen": f"{T}1.000000Z",
            "last_seen": f"{T}5.000000Z",
            "last_event": "identify",
            "events": "5",
            "type:track": "3",
            "type:identify": "2",
            "event:Order Completed": "2",
            "trait:plan": "free",
            "trait:email": "a@x.example",
            "trait:visits": "7.50",
            "trait:tags": '["a", {"b": 1}]',
        }
        assert asking.hgetall(f"{prefix}bo") == {
            "first_seen": f"{T}0.000000Z",
            "last_seen": f"{T}0.000000Z",
            "last_event": "Home",
            "events": "1",
            "type:page": "1",
        }
        assert asking.ttl(f"{prefix}ann") == -1


def test_an_event_that_comes_late_undoes_nothing_newer_and_fills_in_what_is_missing(redis_server, prefix):
    sink = Redis(redis_server.url, prefix=prefix)
    rows = [
        archived("m1", 5, type="identify", traits='{"plan": "pro", "gone": null}'),
        archived("m2", 1, type="identify", traits='{"plan": "trial", "from": "ads", "gone": "back"}', is_late=True),
    ]
    _deliver(sink, delivery(rows[:1]), delivery(rows[1:], [2]))
    with _asking(redis_server) as asking:
        found = asking.hgetall(f"{prefix}ann")
    assert {name: found[name] for name in ("first_seen", "last_seen", "trait:plan", "trait:from")} == {
        "first_seen": f"{T}1.000000Z",
        "last_seen": f"{T}5.000000Z",
        "trait:plan": "pro",
        "trait:from": "ads",
    }
    assert "trait:gone" not in found


def test_a_resend_in_any_company_adds_nothing(redis_server, prefix):
    sink = Redis(redis_server.url, prefix=prefix)
    rows = [archived(f"m{n}", n, user="ann" if n % 2 else "bo") for n in range(1, 10)]
    again = delivery(rows[2:7], range(3, 8))
    overlapping = delivery(rows[5:], range(6, 10))
    _deliver(sink, delivery(rows[:6], range(1, 7)), again, overlapping, delivery(rows, range(1, 10)))
    with _asking(redis_server) as asking:
        assert [asking.hget(f"{prefix}{user}", "events") for user in ("ann", "bo")] == ["5", "4"]


def test_of_events_without_order_a_users_last_ids_are_known_for_a_while(redis_server, prefix):
    sink = Redis(redis_server.url, prefix=prefix, ids_kept=3, ids_days=0.5)
    first = [archived(f"m{n}", n) for n in range(5)]
    twice = delivery([first[4], first[4]], is_ordered=[False] * 2)
    _deliver(
        sink,
        delivery(first, [9, 3, 5, 1, 2], is_ordered=[False] * 5),
        delivery(first[2:], is_ordered=[False] * 3),
        twice,
    )
    with _asking(redis_server) as asking:
        assert asking.hget(f"{prefix}ann", "events") == "5"
        assert asking.zrange(f"{IDS}{prefix}ann", 0, -1) == ["m2", "m3", "m4"]
        assert 43_100 < asking.ttl(f"{IDS}{prefix}ann") <= 43_200
        assert not asking.exists(f"{BOOKS}{prefix}ann")


def test_profiles_go_after_their_time_with_all_that_is_kept_for_them(redis_server, prefix):
    sink = Redis(redis_server.url, prefix=prefix, ttl_days=2)
    rows = [archived("m1"), archived("m2")]
    _deliver(sink, delivery(rows, is_ordered=[True, False]))
    with _asking(redis_server) as asking:
        lives = {key: asking.ttl(key) for key in (f"{prefix}ann", f"{BOOKS}{prefix}ann", f"{IDS}{prefix}ann")}
    assert all(86_000 < left <= 172_800 for left in lives.values()), lives


def test_a_restart_goes_on_and_a_new_ledger_neither_repeats_nor_loses(redis_server, prefix):
    """With a new ledger positions start anew; what a profile has is known by its place in the archive's order."""
    sink = Redis(redis_server.url, prefix=prefix)
    rows = [archived(f"m{n}", n) for n in range(6)]
    memory = Remembered()
    _deliver(sink, delivery(rows[:3], [101, 102, 103]), memory=memory)
    _deliver(sink, delivery(rows[1:4], [102, 103, 104]), memory=memory)
    assert len(memory) == 1
    _deliver(sink, delivery(rows[:3], [1, 2, 3]), delivery(rows[2:], [3, 4, 5, 6]), memory=Remembered())
    with _asking(redis_server) as asking:
        assert asking.hget(f"{prefix}ann", "events") == "6"


def test_an_event_that_a_crash_of_the_job_held_up_counts_although_its_place_in_the_order_is_lower(redis_server, prefix):
    """Within a ledger the queue's positions say what is new; a release time may be before that of an earlier commit."""
    sink = Redis(redis_server.url, prefix=prefix)
    rows = [archived("m1", 5), archived("m2", 1)]
    _deliver(sink, delivery(rows[:1], [1]), delivery(rows[1:], [2]))
    with _asking(redis_server) as asking:
        assert asking.hget(f"{prefix}ann", "events") == "2"


def test_hostile_users_events_and_traits_stay_within_their_own_profile(redis_server, prefix):
    names = ["", "a\0b", "{}", "a}b{", "*", "\r\nFLUSHALL\r\n", "x" * 100_000, "ids:ann", "\U0001f600"]
    big = '{"' + "n" * 1_000 + '": "' + "v" * 1_000_000 + '", "huge": 1e999, "int": 123456789012345678901234567890}'
    many = "{" + ",".join(f'"t{n}": {n}' for n in range(20_000)) + "}"
    rows = [archived(f"m{n}", n, user=user, event=user) for n, user in enumerate(names)]
    rows += [archived("big", 100, type="identify", traits=big), archived("many", 101, type="identify", traits=many)]
    bad = ['{"a": "\\ud800"}', "{nonsense", '{"deep": ' + "[" * 100_000 + "]" * 100_000 + "}"]
    rows += [archived(f"bad{n}", 200, type="identify", traits=text) for n, text in enumerate(bad)]
    rows += [archived("list", 102, type="identify", traits="[1, 2]")]
    outcomes = _deliver(Redis(redis_server.url, prefix=prefix, counters=tuple(names)), delivery(rows))[0]
    unreadable = Rejected(Fault.REJECTED, "the traits are not JSON that can be read")
    assert outcomes == [*[DELIVERED] * (len(names) + 2), *[unreadable] * 3, DELIVERED]
    with _asking(redis_server) as asking:
        assert {key.removeprefix(prefix) for key in asking.scan_iter(f"{prefix}*", count=1_000)} == {*names, "ann"}
        assert [asking.hget(f"{prefix}{name}", f"event:{name}") for name in names if name] == ["1"] * (len(names) - 1)
        assert asking.hmget(f"{prefix}ann", "trait:huge", "trait:int", "trait:t19999", "events") == [
            "1e999",
            "123456789012345678901234567890",
            "19999",
            "3",
        ]
        assert asking.hstrlen(f"{prefix}ann", f"trait:{'n' * 1_000}") == 1_000_000


def test_a_key_of_another_type_is_told_for_its_user_alone(redis_server, prefix):
    with _asking(redis_server) as asking:
        asking.set(f"{prefix}bad", "a text")
        asking.set(f"{IDS}{prefix}odd", "a text")
        rows = [archived(f"m{n}", n, user=user) for n, user in enumerate(["ann", "bad", "odd", "bad", "bo"])]
        outcomes = _deliver(
            Redis(redis_server.url, prefix=prefix), delivery(rows, is_ordered=[True, True, False, True, True])
        )[0]
        other = Rejected(Fault.REJECTED, "the user's key in Redis is of another type than a profile: another prefix?")
        assert outcomes == [DELIVERED, other, other, other, DELIVERED]
        assert asking.get(f"{prefix}bad") == "a text"
        assert asking.exists(f"{BOOKS}{prefix}bad", f"{prefix}odd") == 0
        assert asking.hget(f"{prefix}bo", "events") == "1"


def test_a_counter_that_somebody_spoiled_starts_anew(redis_server, prefix):
    sink = Redis(redis_server.url, prefix=prefix)
    with _asking(redis_server) as asking:
        asking.hset(f"{prefix}ann", mapping={"events": "many", "type:track": str(2**52)})
        assert _deliver(sink, delivery([archived("m1")])) == [[DELIVERED]]
        assert asking.hmget(f"{prefix}ann", "events", "type:track") == ["1", str(2**52 + 1)]


@pytest.mark.parametrize(("traits", "kept"), [(("plan",), {"trait:plan": "pro"}), ((), {})])
def test_only_the_traits_that_are_chosen_are_kept(redis_server, prefix, traits, kept):
    rows = [archived("m1", type="identify", traits='{"plan": "pro", "email": "a@x.example"}')]
    _deliver(Redis(redis_server.url, prefix=prefix, traits=traits), delivery(rows))
    with _asking(redis_server) as asking:
        found = asking.hgetall(f"{prefix}ann")
    assert {name: value for name, value in found.items() if name.startswith("trait:")} == kept


def test_a_route_that_leaves_out_what_a_profile_is_made_of_is_told(redis_server, prefix):
    each = delivery([archived("m1")], columns=("message_id", "type", "user_key"))
    with pytest.raises(SinkDownError, match="leaves out: add event, occurred_at, traits to it"):
        _deliver(Redis(redis_server.url, prefix=prefix), each)
    without = delivery([archived("m1")], columns=("message_id", "type", "event", "user_key", "occurred_at"))
    assert _deliver(Redis(redis_server.url, prefix=prefix, traits=()), without) == [[DELIVERED]]


def test_times_of_any_zone_are_told_in_utc(redis_server, prefix):
    rows = delivery([archived("m1")]).rows
    at = rows.schema.get_field_index("occurred_at")
    there = rows.column(at).cast(pa.timestamp("ns", tz="Asia/Tokyo"))
    _deliver(Redis(redis_server.url, prefix=prefix), delivery(rows.set_column(at, "occurred_at", there)))
    with _asking(redis_server) as asking:
        assert asking.hget(f"{prefix}ann", "first_seen") == f"{T}0.000000Z"


@pytest.mark.parametrize(
    ("change", "back", "message"),
    [
        ({"maxmemory": "1"}, {"maxmemory": "0"}, "is out of memory (maxmemory)"),
        ({"min-replicas-to-write": "1"}, {"min-replicas-to-write": "0"}, "NOREPLICAS"),
    ],
)
def test_a_server_that_takes_no_writes_is_down_and_has_applied_nothing(redis_server, prefix, change, back, message):
    rows = [archived("m1"), archived("m2", user="bo")]

    async def body(sink: Redis) -> Any:
        with _asking(redis_server) as asking:
            for name, value in change.items():
                asking.config_set(name, value)
            try:
                with pytest.raises(SinkDownError) as down:
                    await sink.deliver(delivery(rows))
            finally:
                for name, value in back.items():
                    asking.config_set(name, value)
            assert list(asking.scan_iter(f"*{prefix}*")) == []
            return down.value.detail, await sink.deliver(delivery(rows))

    detail, outcomes = _run(Redis(redis_server.url, prefix=prefix), body)
    assert message in detail
    assert outcomes == [DELIVERED] * 2


def test_a_replica_is_down(redis_server, prefix):
    async def body(sink: Redis) -> Any:
        with _asking(redis_server) as asking:
            asking.execute_command("REPLICAOF", "127.0.0.1", "1")
            try:
                with pytest.raises(SinkDownError, match="a replica that takes no writes: name the primary in url"):
                    await sink.deliver(delivery([archived("m1")]))
            finally:
                asking.execute_command("REPLICAOF", "NO", "ONE")
            return await sink.deliver(delivery([archived("m1")]))

    assert _run(Redis(redis_server.url, prefix=prefix), body) == [DELIVERED]


def test_passwords_are_references_and_a_wrong_one_can_never_work(redis_server, prefix, monkeypatch):
    monkeypatch.setenv("GOOD", "pa ss/@:")
    monkeypatch.setenv("BAD", "guess")
    monkeypatch.setenv("URL", redis_server.url.replace("redis://", "redis://teller:pa%20ss%2F%40%3A@"))
    url = redis_server.url.replace("redis://", "redis://teller@")

    async def opens(sink: Redis) -> str:
        try:
            async with _opened(sink):
                return ", ".join(map(str, await sink.deliver(delivery([archived("m1")]))))
        except (CannotOpenSinkError, SinkDownError) as error:
            return f"{type(error).__name__}: {error}"

    async def main() -> Any:
        with _asking(redis_server) as asking:
            asking.acl_setuser("teller", enabled=True, passwords=["+pa ss/@:"], keys=[f"{prefix}*"], commands=["+@all"])
            try:
                found = [
                    await opens(Redis(url, password="env:BAD")),
                    await opens(Redis(url, password="env:NOT_THERE")),
                    await opens(Redis("redis://127.0.0.1:1/0")),
                    await opens(Redis(url, password="env:GOOD", prefix=prefix)),
                ]
                asking.execute_command("ACL", "SETUSER", "teller", "allkeys")
                found.append(await opens(Redis(url, password="env:GOOD", prefix=prefix)))
                found.append(await opens(Redis("env:URL", prefix=prefix)))
            finally:
                asking.acl_deluser("teller")
        return found

    found = asyncio.run(main())
    assert [each.split(" ")[0] for each in found] == [
        "CannotOpenSinkError:",
        "CannotOpenSinkError:",
        "SinkDownError:",
        "SinkDownError:",  # it may not write the keys beside the profiles
        "Delivered()",
        "Delivered()",
    ]
    assert not any("guess" in each or "pa ss" in each for each in found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "http://x"}, "url has to be redis://host:port/db, rediss:// for TLS, or unix:///path"),
        ({"url": "redis://u:pw@h"}, "url may not hold a password"),
        ({"url": "redis://h?password=pw"}, "url may not hold a password"),
        ({"password": "hunter2"}, "password has to say where the secret is"),
        ({"prefix": ""}, "prefix would mix"),
        ({"prefix": "millrace:x"}, "prefix would mix"),
        ({"prefix": "ids:"}, "prefix would mix"),
        ({"prefix": "m"}, "prefix would mix"),
        ({"ttl_days": 0}, "ttl_days has to be above 0, got 0; leave it out for ever"),
        ({"ids_kept": 0}, "have to be above 0"),
        ({"timeout_s": 0}, "have to be above 0"),
    ],
)
def test_settings_that_are_wrong_are_told_without_a_server(settings, message):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as wrong:
        Redis(**{"url": "redis://h", **settings})
    assert message in str(wrong.value)
    assert "pw" not in str(wrong.value)
    assert "hunter2" not in str(wrong.value)

"""`millrace sinks`: what it prints, whole; what it exits with; and what an operator leaves on record."""

import contextlib
import datetime as dt
import getpass
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from millrace.delivery import sinks_command
from millrace.delivery.ledger import Ledger
from millrace.delivery.records import Parked, Status, Trying

NOW_US = 1_800_000_000_000_000
S = 1_000_000


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks_command, "now_us", lambda: NOW_US)
    monkeypatch.setattr(sinks_command, "_WAIT_S", 0.0)


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def command(*arguments: str) -> tuple[int, str, str]:
        code = sinks_command.main([*arguments, "--state", str(tmp_path)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return command


@contextlib.contextmanager
def ledger_of(root: Path, name: str, *, said_s_ago: float = 0.5, **said: Any) -> Iterator[Ledger]:
    """The ledger of a lane that said this."""
    with contextlib.closing(Ledger(root / f"{name}.sqlite")) as ledger:
        if said:
            ledger.set_status(Status(sink=name, is_ordered=True, **said))
            ledger._db.execute("UPDATE now SET written_us = ?", (NOW_US - round(said_s_ago * S),))
        yield ledger


def trying(name: str, user: str, since_s: float, next_s: float, *, waiting: int = 0, tries: int = 3) -> Trying:
    first, following = NOW_US - round(since_s * S), NOW_US + round(next_s * S)
    return Trying(int(name[1:]), user, name, tries, first, following, "failed", "HTTP 500", waiting)


def test_the_overview(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    totals = {"routed": 1_010, "delivered": 1_000, "dead": 4, "skipped": 2, "parked": 1, "unreadable": 20}
    with ledger_of(
        tmp_path, "crm", state="running", totals=totals, waiting=3, blocked_users=1, behind=1_200, lag_s=75, pid=1
    ) as ledger:
        ledger.set_trying([trying("m1", "ann", 60, 5, waiting=2)])
        ledger.park(Parked(9, "bob", "m9", "crm", b""))
    down: dict[str, Any] = {"state": "down", "detail": "connection refused", "down_since_us": NOW_US - 3_700 * S}
    with ledger_of(tmp_path, "profile", **down, totals={"routed": 5, "delivered": 5}):
        pass
    with ledger_of(tmp_path, "profile.unordered", said_s_ago=200, state="running", lag_s=2):
        pass
    with ledger_of(tmp_path, "shop", state="failed", detail="there is no database shop: create it"):
        pass
    with ledger_of(tmp_path, "twitter", said_s_ago=90_000, state="stopped"):
        pass
    with ledger_of(tmp_path, "young"):
        pass
    (tmp_path / "younger.sqlite").touch()  # its lane has only just begun
    (tmp_path / "zebra.sqlite").write_bytes(b"this is no database" * 100)
    assert run() == (
        1,
        f"""\
sink               state       delivered  retrying  waiting  dead  skipped  parked  blocked  lag
crm                running     1,000      1         3        4     2        1       1        1 min 15 s
profile            down        5          0         0        0     0        0       0        0.0 s
profile.unordered  silent      0          0         0        0     0        0       0        3 min 22 s
shop               failed      0          0         0        0     0        0       0        0.0 s
twitter            stopped     0          0         0        0     0        0       0        0.0 s
young              never ran   0          0         0        0     0        0       0        0.0 s
younger            never ran   0          0         0        0     0        0       0        0.0 s
zebra              unreadable  0          0         0        0     0        0       0        0.0 s
crm has yet to read 1,200 rows of the archive.
crm has lost 20 rows of the archive, whose files were deleted before it came to them.
profile is down since 1 h 1 min: connection refused. Its events wait.
profile.unordered has said nothing for 3 min 20 s: is it running?
shop does not go on: there is no database shop: create it.
{tmp_path}/zebra.sqlite cannot be read: file is not a database.
""",
        "",
    )


def test_all_is_well(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    with ledger_of(tmp_path, "crm", state="running"):
        pass
    assert run() == (
        0,
        """\
sink  state    delivered  retrying  waiting  dead  skipped  parked  blocked  lag
crm   running  0          0         0        0     0        0       0        0.0 s
""",
        "",
    )
    assert run("blocked") == (0, "Nobody is blocked.\n", "")
    assert run("log") == (0, "Nothing was ordered.\n", "")


def test_a_lane_says_what_it_waits_for(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    with ledger_of(tmp_path, "crm", state="running", detail="waits for an archive at /data/archiv"):
        pass
    code, out, _ = run()
    assert (code, out.splitlines()[-1]) == (0, "crm waits for an archive at /data/archiv.")


def test_who_is_blocked(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    with ledger_of(tmp_path, "crm", state="running") as ledger:
        ledger.set_trying([trying("m1", "ann", 7_300, 65, waiting=1_200, tries=12), trying("m22", "", 5, -1, tries=1)])
    with ledger_of(tmp_path, "shop", state="running") as ledger:
        ledger.set_trying([trying("m3", "bob", 200_000, 0.3)])
    of_crm = """\
crm   ann         m1     2 h 1 min  12     in 1 min 5 s  1,200    failed: HTTP 500
crm   (no order)  m22    5.0 s      1      now           0        failed: HTTP 500
"""
    lines = of_crm.splitlines()
    code, out, err = run("blocked")
    head, *rows = out.splitlines()
    assert (code, err) == (0, "")
    assert head == "sink  user        event  since      tries  next          waiting  why"
    assert sorted(rows) == sorted(
        [*lines, "shop  bob         m3     2 d 7 h    3      in 0.3 s      0        failed: HTTP 500"]
    )
    assert sorted(run("blocked", "crm")[1].splitlines()[1:]) == sorted(lines)


def test_for_programs(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    with ledger_of(tmp_path, "crm", state="running", totals={"delivered": 7}, lag_s=1.5) as ledger:
        ledger.park(Parked(9, "bob", "m9", "crm", b"secret"))
    code, out, _ = run("--json")
    (crm,) = json.loads(out)
    assert (code, crm["name"], crm["state"], crm["lag_s"], crm["parked"]) == (0, "crm", "running", 2.0, ["m9"])
    assert crm["status"]["totals"] == {"delivered": 7}
    assert (crm["detail"], crm["retrying"]) == ("", [])


def test_an_order_waits_for_the_lane_and_stays_on_record(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ledger_of(tmp_path, "crm", state="running"), ledger_of(tmp_path, "crm.unordered", state="running"):
        pass
    told = "told; the lane does it as soon as it runs, or its delivery under way has ended: see `millrace sinks log`"
    assert run("skip", "crm", "user:ann:b", "--by", "eve", "--reason", "she left") == (
        *(0, f"crm: {told}\ncrm.unordered: {told}\n", ""),
    )
    monkeypatch.setattr(sinks_command, "_WAIT_S", 20.0)

    def lane() -> None:
        with contextlib.closing(Ledger(tmp_path / "crm.sqlite")) as ledger:
            while not (pending := [order for order in ledger.orders(pending=True) if order.verb == "retry"]):
                pass
            ledger.done(pending[0].id, "2 tried again now, 0 brought back from parking")

    thread = threading.Thread(target=lane)
    thread.start()
    (tmp_path / "crm.unordered.sqlite").unlink()
    assert run("retry", "crm", "all") == (0, "crm: 2 tried again now, 0 brought back from parking\n", "")
    thread.join()
    with contextlib.closing(Ledger(tmp_path / "crm.sqlite")) as ledger:
        when = [
            dt.datetime.fromtimestamp(order.told_us / S, dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
            for order in ledger.orders()
        ]
    who = getpass.getuser()
    width = max(len("eve"), len(who))
    code, out, _ = run("log")
    assert code == 0
    assert out.splitlines()[1:] == [
        f"{when[0]}  crm   {'eve':{width}}  skip   user:ann:b  she left  (to be done)",
        f"{when[1]}  crm   {who:{width}}  retry  all                   2 tried again now, 0 brought back from parking",
    ]


@pytest.mark.parametrize(
    ("results", "code"),
    [
        (["not found: nothing of user:ann has failed", "not found: nothing of user:ann has failed"], 1),
        (["not found: nothing of user:ann has failed", "1 skipped: m1"], 0),
        (["1 skipped: m1", None], 0),
        (["not found: nothing of user:ann has failed", None], 0),
    ],
)
def test_an_order_of_which_no_lane_has_anything_is_a_failure(
    tmp_path: Path,
    run: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    results: list[str | None],
    code: int,
) -> None:
    tell, told = Ledger.tell, "told; the lane does it as soon as it runs, or its delivery under way has ended: see "

    def answered(ledger: Ledger, *order: str) -> int:
        number = tell(ledger, *order)
        result = results[ledger.path.stem == "crm.unordered"]
        if result is not None:
            ledger.done(number, result)
        return number

    monkeypatch.setattr(Ledger, "tell", answered)
    with ledger_of(tmp_path, "crm", state="running"), ledger_of(tmp_path, "crm.unordered", state="running"):
        pass
    names = "crm", "crm.unordered"
    said = [f"{name}: {result or told + '`millrace sinks log`'}\n" for name, result in zip(names, results, strict=True)]
    assert run("skip", "crm", "user:ann") == (code, "".join(said), "")


def test_where_the_user_has_no_name(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(getpass, "getuser", nobody)
    with ledger_of(tmp_path, "crm", state="running") as ledger:
        assert run()[0] == 0
        assert run("skip", "crm", "all")[0] == 0
        assert [order.told_by for order in ledger.orders()] == [f"uid {os.getuid()}"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["blocked", "shop"], "millrace sinks: there is no shop in {root}; there are: crm"),
        (["skip", "shop", "all"], "millrace sinks: there is no shop in {root}; there are: crm"),
    ],
)
def test_a_sink_that_is_not_there(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]], arguments: list[str], said: str
) -> None:
    with ledger_of(tmp_path, "crm", state="running"):
        pass
    assert run(*arguments) == (2, "", said.format(root=tmp_path) + "\n")


def test_no_ledger_at_all(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    said = f"millrace sinks: {tmp_path} holds no ledger: give the --state of `millrace deliver`, or start it first\n"
    assert run() == (2, "", said)


def test_a_ledger_that_cannot_be_written(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    (tmp_path / "crm.sqlite").write_bytes(b"this is no database" * 100)
    said = f"millrace sinks: {tmp_path}/crm.sqlite cannot be written: file is not a database\n"
    assert run("skip", "crm", "all") == (2, "", said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["skip"], "skip: give the sink, and user:KEY, event:MESSAGE_ID or all"),
        (["skip", "crm"], "skip: give the sink, and user:KEY, event:MESSAGE_ID or all"),
        (["park", "crm", "ann"], "'ann' is no subject; give user:KEY, event:MESSAGE_ID or all"),
        (["park", "crm", "user:"], "'user:' is no subject; give user:KEY, event:MESSAGE_ID or all"),
        (
            ["dance"],
            "argument COMMAND: invalid choice: 'dance' (choose from 'blocked', 'log', 'retry', 'skip', 'park')",
        ),
    ],
)
def test_what_is_no_order(
    run: Callable[..., tuple[int, str, str]], capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(*arguments)
    assert capsys.readouterr().err.splitlines()[-1] == f"millrace sinks: error: {said}"

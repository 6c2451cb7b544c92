"""Metrics of the lanes, as Prometheus' own parser reads them, and the health page."""

import contextlib
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from millrace.delivery.ledger import Ledger
from millrace.delivery.metrics import serve
from millrace.delivery.records import Parked, Status, Trying

S = 1_000_000


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    server = serve(tmp_path, port, "127.0.0.1", ["crm", "shop"])
    yield f"http://127.0.0.1:{port}"
    server.shutdown()
    server.server_close()


def say(root: Path, name: str, ago_s: float = 0.0, **said: Any) -> None:
    with contextlib.closing(Ledger(root / f"{name}.sqlite")) as ledger:
        ledger.set_status(Status(sink=name, is_ordered=True, **said))
        ledger._db.execute("UPDATE now SET written_us = ?", (time.time_ns() // 1_000 - round(ago_s * S),))


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=60) as reply:  # noqa: S310  ours
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def samples(address: str) -> dict[str, dict[str, float]]:
    """By name, and by the labels' values: what /metrics says."""
    code, text = get(f"{address}/metrics")
    assert code == 200
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            found.setdefault(sample.name, {})[" ".join(sample.labels.values())] = sample.value
    return found


def test_what_is_measured(tmp_path: Path, address: str) -> None:
    totals = {"routed": 30, "delivered": 20, "dead": 2, "parked": 1, "without order": 4}
    busy: dict[str, Any] = {
        "waiting": 7,
        "in_flight": 3,
        "concurrency": 8,
        "blocked_users": 1,
        "behind": 90,
        "totals": totals,
    }
    say(tmp_path, "crm", state="running", **busy)
    say(tmp_path, "shop", state="down", down_since_us=1, detail="refused")
    with contextlib.closing(Ledger(tmp_path / "crm.sqlite")) as ledger:
        ledger.set_trying([Trying(1, "ann", "m1", 1, 1, 1, "failed", "HTTP 500")])
        ledger.park(Parked(9, "bob", "m9", "crm", b""))
    (tmp_path / "zebra.sqlite").write_bytes(b"no database" * 100)
    assert samples(address) == {
        "millrace_sink_events_total": {
            "crm routed": 30, "crm delivered": 20, "crm dead": 2, "crm without_order": 4,
            "crm skipped": 0, "crm unreadable": 0,
            "shop routed": 0, "shop delivered": 0, "shop dead": 0, "shop without_order": 0,
            "shop skipped": 0, "shop unreadable": 0,
        },
        "millrace_sink_up": {"crm": 1, "shop": 0, "zebra": 0},
        "millrace_sink_waiting": {"crm": 7, "shop": 0},
        "millrace_sink_retrying": {"crm": 1, "shop": 0},
        "millrace_sink_parked": {"crm": 1, "shop": 0},
        "millrace_sink_blocked_users": {"crm": 1, "shop": 0},
        "millrace_sink_behind_rows": {"crm": 90, "shop": 0},
        "millrace_sink_lag_seconds": {"crm": 0, "shop": 0},
        "millrace_sink_deliveries": {"crm": 3, "shop": 0},
        "millrace_sink_concurrency": {"crm": 8, "shop": 0},
    }  # fmt: skip


def test_the_lag_grows_while_a_lane_is_away(tmp_path: Path, address: str) -> None:
    say(tmp_path, "crm", ago_s=100, state="running", lag_s=20)
    assert 119 < samples(address)["millrace_sink_lag_seconds"]["crm"] < 180


def test_health_is_of_the_lanes_that_are_to_run(tmp_path: Path, address: str) -> None:
    url = f"{address}/health"
    assert get(url) == (503, "crm never ran\nshop never ran\n")
    say(tmp_path, "crm", state="running")
    say(tmp_path, "shop", state="running")
    say(tmp_path, "old", ago_s=90_000, state="running")  # a sink that was taken out of the configuration
    assert get(url) == (200, "ok\n")
    say(tmp_path, "crm", ago_s=11, state="running")
    assert get(url) == (503, "crm is silent\n")
    say(tmp_path, "crm", state="down")
    say(tmp_path, "shop", state="failed")
    assert get(url) == (503, "crm is down\nshop is failed\n")
    (tmp_path / "shop.sqlite").write_bytes(b"no database" * 100)
    assert get(url) == (503, "crm is down\nshop is unreadable\n")


def test_other_pages(address: str) -> None:
    assert get(f"{address}/") == (404, "There are /metrics and /health.\n")
    assert samples(address) == {}
    assert get(f"{address}/metrics?name[]=x")[0] == 200


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        serve(tmp_path, taken.getsockname()[1], "127.0.0.1", [])

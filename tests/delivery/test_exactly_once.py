"""Exactly once from end to end: `millrace deliver` with files and BigQuery; it is killed, and so is the server."""

import datetime as dt
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from google.api_core.exceptions import NotFound

from millrace.sinks.delta import open_table
from millrace.sinks.tables import ARCHIVE
from tests.support.bigquery import RunningBigQuery, running_bigquery
from tests.support.rows import START, archive_rows

CONFIG = """
sinks:
  warehouse: {{use: bigquery, with: {{table: {table}, endpoint: "{endpoint}", rest_endpoint: "{rest_endpoint}", timeout_s: 3}}, max_events: 50}}
  lake: {{use: files, with: {{folder: "{folder}", roll_bytes: 20000}}, max_events: 50}}
routes:
  - {{to: warehouse}}
  - {{to: lake, columns: [message_id, user_key, {{properties: payload}}]}}
"""  # noqa: E501
WINDOWS = 6


def _lake(folder: Path) -> list[dict[str, str]]:
    """What is in the files with final names, in the order of their numbers."""
    paths = sorted(folder.rglob("[!.]*.ndjson"), key=lambda path: int(path.stem.rsplit("-", 1)[1]))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def _by_user(rows: list[dict[str, str]]) -> dict[str, list[str]]:
    found = defaultdict(list)
    for row in rows:
        found[row["user_key"]].append(row["message_id"])
    return found


def _warehouse(server: RunningBigQuery) -> list[dict[str, str]]:
    try:
        rows = server.query(f"SELECT user_key, message_id FROM `{server.table('orders')}`")  # noqa: S608
    except NotFound:
        return []
    return [{"user_key": user, "message_id": message_id} for user, message_id in rows]


def _wait(process: subprocess.Popen[bytes], until: Callable[[], bool]) -> None:
    end = time.monotonic() + 90
    while not until():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)  # it polls: nothing here can be waited for


@pytest.mark.slow
def test_each_event_is_there_once_and_in_order_though_everything_is_killed(tmp_path: Path):
    table = open_table(str(tmp_path / "archive"), ARCHIVE)
    rows: list[dict[str, str]] = []

    def commit(window: int) -> None:
        made = archive_rows(300, start=START + dt.timedelta(seconds=5 * window), users=20, seed=window)
        table.commit(table.write(made, f"w{window}"), app_id="test", version=window)
        rows.extend(made.sort_by([("user_key", "ascending"), ("order_index", "ascending")]).to_pylist())

    root = str(tmp_path)
    command = [sys.executable, "-m", "millrace.cli", "deliver", "--config", f"{root}/millrace.yaml", "--archive",
               f"{root}/archive", "--state", f"{root}/state", "--from_start", "--quiet", "--drain_s=60"]  # fmt: skip
    with running_bigquery(tmp_path / "bigquery") as server, (tmp_path / "log").open("ab") as log:
        (tmp_path / "millrace.yaml").write_text(
            CONFIG.format(table=server.table("orders"), folder=tmp_path / "out", **server.settings)
        )
        for window in range(1, WINDOWS + 1):
            commit(window)
        moments: list[Callable[[], bool]] = [
            lambda: len(_lake(tmp_path / "out")) >= 100,
            lambda: len(_warehouse(server)) >= 1_000,
        ]
        for moment in moments:
            process = subprocess.Popen(command, stderr=log, start_new_session=True)
            try:
                _wait(process, moment)
            finally:
                process.kill()
                process.wait()
            server.kill()
            server.start()
        process = subprocess.Popen(command, stderr=log, start_new_session=True)
        commit(WINDOWS + 1)
        try:
            _wait(process, lambda: len(_warehouse(server)) >= len(rows))
            process.terminate()
            process.wait(120)
        finally:
            process.kill()
        assert process.wait() == 0, (tmp_path / "log").read_text()[-3_000:]
        lake, warehouse = _lake(tmp_path / "out"), _warehouse(server)
    expected = _by_user(rows)
    assert _by_user(lake) == expected
    assert _by_user(warehouse) == expected
    assert len(lake) == len(warehouse) == len(rows)

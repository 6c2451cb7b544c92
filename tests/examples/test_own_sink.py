"""The example of a sink of one's own."""

import asyncio
import importlib
import json
import sqlite3
from pathlib import Path

import pytest

from millrace.api import DELIVERED, Sink, SinkDownError
from millrace.config.fanout import load_fanout
from millrace.delivery.make import make_sink
from millrace.testing import DictMemory, check_sink, deliveries_of, track
from tests.examples.names import FOLDER, example


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Sink]:
    example(monkeypatch, "own_sink")
    found: type[Sink] = importlib.import_module("own_sink").SQLite
    return found


def rows(path: Path) -> list[tuple[str, str]]:
    database = sqlite3.connect(path)
    found = database.execute("SELECT message_id, event FROM events ORDER BY rowid").fetchall()
    database.close()
    return found


def test_the_docs_show_it():
    code = (FOLDER / "own_sink" / "own_sink.py").read_text().partition('"""\n\n')[2]
    assert f"```python\n{code}```" in (FOLDER.parent / "docs" / "sinks" / "own.md").read_text()


def test_its_configuration_makes_it(make: type[Sink], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(FOLDER / "own_sink")
    (sink,) = load_fanout("millrace.yaml").sinks
    assert make_sink(sink) == make(path="orders.sqlite")  # type: ignore[call-arg]


def test_events_are_rows(make: type[Sink], tmp_path: Path):
    async def story() -> None:
        sink = make(path=str(tmp_path / "orders.sqlite"))  # type: ignore[call-arg]
        await sink.open(DictMemory())
        (given,) = deliveries_of([track("Order Completed", user="ann", message_id="a", properties={"total": 3})])
        assert await sink.deliver(given) == [DELIVERED]
        await sink.close()

    asyncio.run(story())
    ((message_id, event),) = rows(tmp_path / "orders.sqlite")
    assert (message_id, json.loads(event)["properties"]) == ("a", {"total": 3})


def test_it_keeps_what_every_sink_has_to(make: type[Sink], tmp_path: Path):
    path = tmp_path / "orders.sqlite"
    check_sink(
        lambda: make(path=str(path)),  # type: ignore[call-arg]
        read=lambda: [message_id for message_id, _ in rows(path)],
    )


def test_a_file_that_cannot_be_opened_blames_no_event(make: type[Sink], tmp_path: Path):
    sink = make(path=str(tmp_path / "nowhere" / "orders.sqlite"))  # type: ignore[call-arg]
    with pytest.raises(SinkDownError, match="unable to open database file"):
        asyncio.run(sink.deliver(deliveries_of([track("x")])[0]))

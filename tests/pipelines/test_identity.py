"""Order across login, through the whole graph: keys and order hang on the events alone, and survive a restart."""

import itertools
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace import api
from millrace.api import on_event
from millrace.config.job import JobConfig, read_job
from millrace.pipelines import events
from millrace.pipelines.options import EventOptions
from millrace.pipelines.runners import Kind, why_not_prism
from millrace.schemas.envelope import Envelope
from millrace.sinks.delta import open_table
from millrace.sinks.identities import recall_links
from millrace.sinks.job_tables import Tables, forget_committer
from millrace.sinks.tables import ARCHIVE, IDENTITIES, with_columns
from millrace.transforms.link_store import forget_links_here
from tests.pipelines.test_graph import SUBSCRIPTION, an_event
from tests.support.batches import NOON_US

CONFIG = read_job("identity: {}", "millrace.yaml")
Event = dict[str, Any]
Row = dict[str, Any]


def happened(number: int, at_s: float, web: str | None = None, user: str | None = None, **more: Any) -> Event:
    """Return an event of a device, of a user, or of both."""
    ids = {key: value for key, value in {"anonymousId": web, "userId": user}.items() if value}
    return {key: value for key, value in an_event(number, "", at_s, **more).items() if key != "userId"} | ids


def login(number: int, at_s: float, web: str, user: str) -> Event:
    return happened(number, at_s, web, user, type="identify", traits={"plan": "pro"})


def alias(number: int, at_s: float, previous: str, user: str) -> Event:
    return happened(number, at_s, None, user, type="alias", previousId=previous)


ANN = [
    happened(10, -9.5, "web"),
    happened(11, -9.3, user="ann"),  # by a server, which knows nothing of the browser yet
    happened(12, -9, "web"),
    login(13, -8, "web", "ann"),
    happened(14, -8, "web", "ann"),  # at the same moment as the login
    happened(15, -7, "web"),  # a browser that forgets the user id between pages
    happened(16, -6, user="ann"),
    happened(17, -4.5, "phone"),
    login(18, -4, "phone", "ann"),
    happened(19, -3.5, "phone"),
    login(20, -2, "web", "ann"),  # said again
    happened(21, 4, "web"),
]
SHARED = [
    happened(30, -9, "tablet"),
    login(31, -8, "tablet", "bob"),
    happened(32, -7, "tablet"),
    login(33, -6, "tablet", "eve"),
    happened(34, -5, "tablet"),
    happened(35, -4, user="bob"),
    login(36, -3, "tablet", "bob"),
    happened(37, 3, "tablet"),
]
ALIASED = [
    happened(40, -9, "tv"),
    login(41, -8, "tv", "z@x"),
    alias(42, -6, "z@x", "zoe"),
    happened(43, -5, user="z@x"),
    happened(44, -4, user="zoe"),
    happened(45, 2, "tv"),
]
TIED = [
    login(60, -8, "kiosk", "tim"),
    login(61, -8, "kiosk", "tom"),  # at the same moment: the ids decide
    happened(62, -7, "kiosk"),
]
LATE = [
    happened(50, -6, "car"),
    login(51, -300, "car", "max"),  # the car was in a tunnel
    happened(52, -301, "car"),
    happened(53, 1, user="max"),
]
EXPECTED = {
    "web": [10, 12, 13, 14, 15, 16, 18, 19, 20, 21],
    "ann": [11],
    "phone": [17],
    "tablet": [30, 31, 32, 35, 36, 37],
    "eve": [33, 34],
    "tv": [40, 41, 42, 43, 44, 45],
    "car": [52, 51, 50, 53],
    "kiosk": [60],
    "tom": [61, 62],
}
EVERY = [*ANN, *SHARED, *ALIASED, *TIED, *LATE]
IDENTITY_ROWS = sorted([
    ("ann", "ann", "web", "m13"), ("bob", "bob", "tablet", "m31"), ("car", "max", "car", "m51"),
    ("eve", "eve", "eve", "m33"), ("max", "max", "car", "m51"), ("phone", "ann", "web", "m18"),
    ("kiosk", "tom", "tom", "m61"), ("tim", "tim", "kiosk", "m60"), ("tom", "tom", "tom", "m61"),
    ("tablet", "bob", "tablet", "m31"), ("tablet", "bob", "tablet", "m36"), ("tablet", "eve", "eve", "m33"),
    ("tv", "z@x", "tv", "m41"), ("web", "ann", "web", "m13"), ("z@x", "z@x", "tv", "m41"),
    ("z@x", "zoe", "tv", "m42"), ("zoe", "zoe", "tv", "m42"),
])  # fmt: skip


def envelope(given: Sequence[Event], number: int) -> Envelope:
    # All of one publication, so that a late event is as late in any message.
    published_us = NOON_US + 200_000
    attributes = {"source_id": "shop", "received_at": "2026-11-25T12:00:00.100Z"}
    return Envelope(json.dumps({"batch": list(given)}).encode(), attributes, f"e{number}", published_us, published_us)


class Job:
    """A job with its tables in a folder, whose process may end and begin again."""

    def __init__(self, folder: Path, config: JobConfig = CONFIG, *, alone: bool = True) -> None:
        self.tables = Tables.at(folder, alone=alone, added=config.added)
        self._config = config
        self.die()

    def die(self) -> None:
        """Let the process's memory go; the tables stay."""
        forget_links_here()
        forget_committer(self.tables)

    def start(self) -> None:
        """Begin as main does on one node."""
        assert self._config.identity is not None
        recall_links(self.tables, self._config.identity)

    def run(self, *pulls: Sequence[Envelope]) -> None:
        """Run the graph behind the read on what some pulls bring, to its end."""
        with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
            read = pipeline | "ReadEnvelopes" >> beam.Create(list(map(list, pulls))).with_output_types(list[Envelope])
            events.build(read, EventOptions(["--shards=3"]), self._config, self.tables)

    def archived(self) -> list[Row]:
        table = open_table(self.tables.archive, with_columns(ARCHIVE, self._config.added)).delta.to_pyarrow_table()
        rows: list[Row] = table.sort_by([("user_key", "ascending"), ("order_index", "ascending")]).to_pylist()
        return rows

    def sequences(self) -> dict[str, list[int]]:
        """Return the numbers of the events of each user_key, in their order."""
        found: dict[str, list[int]] = {}
        for row in self.archived():
            found.setdefault(row["user_key"], []).append(int(row["message_id"].removeprefix("m")))
        return found

    def identities(self) -> list[tuple[str, ...]]:
        rows = open_table(self.tables.identities, IDENTITIES).delta.to_pyarrow_table().to_pylist()
        return sorted((row["id"], row["user_id"], row["user_key"], row["message_id"]) for row in rows)


def places(rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    names = ("user_key", "order_index", "message_id", "linked_at", "user_id", "anonymous_id", "released_at", "is_late")
    return [tuple(row[name] for name in names) for row in rows]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """The rows when all events come in one message."""
    job = Job(tmp_path_factory.mktemp("expected"))
    job.run([envelope(EVERY, 0)])
    assert job.sequences() == EXPECTED
    assert job.identities() == IDENTITY_ROWS
    rows = job.archived()
    for key in EXPECTED:
        places_of = [row["order_index"] for row in rows if row["user_key"] == key]
        assert len(set(places_of)) == len(places_of)
    return places(rows)


copies = st.lists(st.sampled_from(EVERY), max_size=8)


@pytest.mark.slow
@pytest.mark.parametrize("alone", [True, False])
@settings(max_examples=6, deadline=None)
@given(repeats=copies, chance=st.randoms(use_true_random=False))
def test_any_permutation_duplication_and_split_gives_the_same_keys_and_places(expected, alone, repeats, chance):
    arranged = [*EVERY, *repeats]
    chance.shuffle(arranged)
    pulls: list[list[Envelope]] = [[]]
    while arranged:
        size = chance.randint(1, 9)
        pulls[-1].append(envelope(arranged[:size], len(arranged)))
        arranged = arranged[size:]
        if chance.random() < 0.5:
            pulls.append([])
    with tempfile.TemporaryDirectory() as folder:
        job = Job(Path(folder), alone=alone)
        job.run(*pulls)
        assert places(job.archived()) == expected
        assert job.identities() == IDENTITY_ROWS


def by_release(given: Event) -> str:
    return "" if given in LATE[1:3] else str(given["originalTimestamp"])


MOMENTS = [list(each) for _, each in itertools.groupby(sorted(EVERY, key=by_release), by_release)]


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(cut=st.integers(0, len(MOMENTS)), again=st.integers(0, 12), crash=st.sampled_from(["clean", "no identities"]))
def test_after_a_restart_in_the_middle_keys_and_places_are_the_same(expected, cut, again, crash):
    """The process ends between two moments; some that are archived come again, since nobody acknowledged them."""
    single = [envelope(each, number) for number, each in enumerate(MOMENTS)]
    with tempfile.TemporaryDirectory() as folder:
        job = Job(Path(folder))
        job.start()
        job.run(single[:cut])
        job.die()
        if crash == "no identities":  # as if it had ended before their first commit
            shutil.rmtree(job.tables.identities)
        job.start()
        job.run(single[max(0, cut - again) :])
        assert places(job.archived()) == expected
        assert job.identities() == IDENTITY_ROWS


def test_without_the_section_a_user_is_their_own_id_and_nothing_is_written(tmp_path: Path):
    job = Job(tmp_path, JobConfig())
    job.run([envelope(ANN, 0)])
    assert job.sequences() == {"web": [10, 12, 15, 21], "phone": [17, 19], "ann": [11, 13, 14, 16, 18, 20]}
    assert job.identities() == []


def labels(pipeline: beam.Pipeline, parent: str) -> list[str]:
    transforms = pipeline.to_runner_api().components.transforms
    (found,) = (each for each in transforms.values() if each.unique_name == parent)
    return [transforms[id_].unique_name.removeprefix(f"{parent}/") for id_ in found.subtransforms]


@pytest.mark.parametrize(
    ("kind", "config", "more"),
    [
        (Kind.ONE_NODE, JobConfig(), []),
        (Kind.ONE_NODE, CONFIG, ["ResolveUsers", "TakeTurns", "WindowOfTurn"]),
        (Kind.PORTABLE, CONFIG, ["ResolveUsers", "TakeTurns", "WindowOfTurn"]),
    ],
)
def test_only_with_the_section_there_is_more_to_do(tmp_path: Path, kind: Kind, config: JobConfig, more: list[str]):
    given = [f"--subscription={SUBSCRIPTION}"]
    pipeline = beam.Pipeline(options=PipelineOptions(given, streaming=True))
    options = EventOptions(given)
    tables = Tables.at(tmp_path, alone=kind is Kind.ONE_NODE, added=config.added)
    events.build(pipeline | "ReadEnvelopes" >> events.read(options, kind), options, config, tables)
    assert labels(pipeline, "OrderPerUser") == ["Release", "Window", *more, "GroupByShard", "Order"]
    assert why_not_prism(pipeline) == []


@on_event()
def hide_user(event: api.Event) -> api.Event:
    """A transform of a user's own."""
    event["user_id"] = event["user_id"] and f"hidden-{event['user_id']}"
    return event


def test_a_transform_that_hides_user_ids_sends_nobody_elsewhere_after_a_restart(tmp_path: Path):
    config = read_job(f"identity: {{}}\ntransforms: [{{use: '{__name__}:hide_user'}}]", "millrace.yaml")
    job = Job(tmp_path, config)
    job.run([envelope([login(1, -9, "web", "ann"), happened(2, -8, "web")], 0)])
    job.die()
    job.start()
    job.run([envelope([happened(3, -7, "web"), happened(4, -6, user="ann")], 1)])
    assert job.sequences() == {"web": [1, 2, 3, 4]}
    assert {row["user_id"] for row in job.archived()} == {None, "hidden-ann"}
    assert [row[:3] for row in job.identities()] == [("ann", "ann", "web"), ("web", "ann", "web")]

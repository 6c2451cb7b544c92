"""The dry run: what a changed configuration would make of what is archived, and nothing written."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from millrace import cli
from millrace.config.job import read_job
from millrace.pipelines import dry_run
from millrace.sinks.job_tables import Tables, committer, forget_committer
from millrace.transforms.custom.timings import forget_timings
from millrace.transforms.steps import Users
from tests.support.batches import NOON_US, event
from tests.support.custom import MODULE, ordered

BEFORE = f"""
transforms:
  - use: {MODULE}:euros
    with: {{rate: 2}}
  - use: {MODULE}:Numbered
"""
DAY = 86_400
ROWS = [
    event("m0", 0, event="Order", properties='{"total": 1}'),
    event("m1", 1, event="split"),
    event("m2", DAY, event="Order", properties='{"total": 2}'),
    event("m3", DAY + 1, event="Viewed", user="bob"),
    event("m4", 2 * DAY, event="Order", properties='{"total": 5}', user="bob"),
    event("m5", 2 * DAY + 10, event="Order"),
]


@pytest.fixture
def archived(tmp_path: Path) -> Iterator[str]:
    """An archive that BEFORE made, in several commits."""
    config = read_job(BEFORE, "millrace.yaml")
    tables = Tables.at(tmp_path / "tables", added=config.added)
    steps = [*config.steps, *config.transforms]
    memory = [Users() for _ in steps]
    for rows in (ROWS[:2], ROWS[2:4], ROWS[4:]):
        batch = ordered(rows)
        for step, users in zip(steps, memory, strict=True):
            batch = step.apply(batch, users).batch
        committer(tables).commit_events([committer(tables).write_ahead(batch)], NOON_US)
    forget_timings()
    yield tables.archive
    forget_committer(tables)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    forget_timings()
    code = cli.main(["dry-run", *arguments])
    out, err = capsys.readouterr()
    return code, [line for line in (out + err).splitlines() if not line.startswith("transform ")]


def config(tmp_path: Path, text: str) -> str:
    path = tmp_path / "new.yaml"
    path.write_text(text)
    return f"--config={path}"


def test_the_same_configuration_makes_the_same_rows(
    archived: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    before = sorted(Path(archived).rglob("*"))
    for rows in (500_000, 1):
        monkeypatch.setattr(dry_run, "PART_ROWS", rows)
        given = [f"--archive={archived}", config(tmp_path, BEFORE), "--fail-on-diff"]
        code, lines = run(capsys, *given)
        assert (code, lines) == (0, [
            "2026-11-20T12:00:10Z to 2026-11-27T12:00:10Z, euros, numbered",
            "9 rows archived: 9 the same, 0 changed, 0 removed; 0 added",
        ])  # fmt: skip
    assert sorted(Path(archived).rglob("*")) == before


def test_what_would_differ_is_said_by_column_with_examples(
    archived: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    changed = (
        BEFORE.replace("rate: 2", "rate: 3").replace("name: x", "")
        + f"""
  - use: {MODULE}:lengths
"""
    )
    given = [f"--archive={archived}", config(tmp_path, changed)]
    code, lines = run(capsys, *given, "--examples=2")
    assert code == 0
    assert lines[1:] == [
        "9 rows archived: 6 the same, 3 changed, 0 removed; 0 added",
        "new column length (int64): 9 values",
        "total_eur: 3 values differ",
        "  m0: 2.0 -> 3.0",
        "  m2: 4.0 -> 6.0",
    ]
    assert run(capsys, *given, "--fail-on-diff")[0] == 1


def test_rows_that_would_come_and_go(archived: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    changed = f"""
transforms:
  - use: {MODULE}:euros
    when: event != "split"
  - use: {MODULE}:Numbered
  - use: {MODULE}:dropping
    when: event == "Viewed"
  - use: {MODULE}:twice
    when: user_key == "bob"
"""
    code, lines = run(capsys, f"--archive={archived}", config(tmp_path, changed))
    assert code == 0
    assert lines[1] == "9 rows archived: 6 the same, 0 changed, 3 removed; 1 added"
    assert lines[-1] == "dropping drops: left out: 1 events"


def test_one_transform_by_name_or_by_module(archived: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with_config = [config(tmp_path, BEFORE.replace("rate: 2", "rate: 4")), "--transform=euros"]
    code, lines = run(capsys, f"--archive={archived}", *with_config, "--since=1d")
    assert (code, lines[0].endswith(", euros"), lines[1]) == (
        0, True, "2 rows archived: 1 the same, 1 changed, 0 removed; 0 added",
    )  # fmt: skip
    code, lines = run(capsys, f"--archive={archived}", f"--transform={MODULE}:lengths", "--since=2026-11-27")
    assert lines[1:] == [
        "2 rows archived: 2 the same, 0 changed, 0 removed; 0 added",
        "new column length (int64): 2 values",
    ]


def test_errors_are_counted_by_their_message(archived: str, capsys: pytest.CaptureFixture[str]):
    code, lines = run(capsys, f"--archive={archived}", f"--transform={MODULE}:no_orders", "--fail-on-diff")
    assert code == 1
    assert lines[1] == "9 rows archived: 5 the same, 0 changed, 4 removed; 0 added"
    assert lines[2].startswith("no_orders dead letters: no_orders 0: RuntimeError (transforms.py:")
    assert lines[2].endswith(": 4 events")


def test_memory_begins_with_what_came_before(archived: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = f"transforms: [{{use: '{MODULE}:Lasting', name: numbered}}]"
    _, lines = run(capsys, f"--archive={archived}", config(tmp_path, text), "--since=10h")
    assert lines[1:] == [
        "2 rows archived: 0 the same, 2 changed, 0 removed; 0 added",
        "number: 2 values differ",
        "  m5: 1 -> 6",
        "  m4: 1 -> 2",
    ]


def test_the_rows_can_be_kept(archived: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    run(capsys, f"--archive={archived}", config(tmp_path, BEFORE), f"--out={out}")
    rows = pq.read_table(out)
    assert rows.num_rows == 9
    assert {"total_eur", "number"} <= set(rows.column_names)
    assert "receipt" not in rows.column_names


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "millrace dry-run: say what to run: --config FILE, or --transform module:Name."),
        (["--transform=a:b"], "--transform:1: transforms: use: there is no module 'a'; install its package, or start "),
        ([f"--transform={MODULE}:lengths", "--since=7"], "millrace dry-run: --since=7 is no length such as 7d and no "),
    ],
)
def test_what_cannot_be_run_is_one_line(
    archived: str, arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
):
    code, lines = run(capsys, f"--archive={archived}", *arguments)
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith(problem)


def test_a_folder_without_an_archive_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, lines = run(capsys, f"--archive={tmp_path}", f"--transform={MODULE}:lengths")
    assert (code, lines) == (2, [f"millrace dry-run: There is no archive at {tmp_path}: correct --archive."])
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_the_configuration_lacks(archived: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, lines = run(capsys, f"--archive={archived}", config(tmp_path, BEFORE), "--transform=euro")
    assert code == 2
    assert lines[0].endswith("new.yaml has no transform 'euro'; there are: euros, numbered.")

"""The table of stages: a line for each stage and each step of a configuration, and a plain word where it is wrong."""

import re
from pathlib import Path

import pytest

from benchmarks import stages
from millrace.config.job import load_job

JOB = Path(stages.__file__).parents[1] / "examples" / "job.yaml"


def named(printed: str) -> list[str]:
    return [re.split(r"  +", line)[0] for line in printed.splitlines()[1:]]


def test_every_stage_and_step_of_the_example_has_its_line(capsys: pytest.CaptureFixture[str]):
    assert stages.main(["--events=300", "--rounds=2", "--unseen=0.5"]) == 0
    steps = [f"enrich: {step.name}" for step in load_job(str(JOB)).steps]
    assert named(capsys.readouterr().out) == [
        "decode", "protect", "validate", "deduplicate", "release", "order", "resolve: across login",
        "to the next worker, ordered", *steps, "to the next worker, enriched",
        "write: Parquet", "all",
    ]  # fmt: skip


def test_one_line_of_a_configuration_of_one_s_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = tmp_path / "my.yaml"
    config.write_text("enrich: [url]\n")
    assert stages.main(["--events=100", "--rounds=2", f"--config={config}", "--only=url"]) == 0
    assert named(capsys.readouterr().out) == ["enrich: url", "all"]


def test_a_mistake_in_the_configuration_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = tmp_path / "my.yaml"
    config.write_text("enrich: [ulr]\n")
    assert stages.main([f"--config={config}"]) == 2
    assert capsys.readouterr().err == f"{config}:1: enrich: there is no enrichment 'ulr'; did you mean url?\n"

"""The local run's refusals: before anything is started, in one line that says what to do."""

import pytest

from millrace.local import run
from millrace.local.sources import make_sources


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise AssertionError("something was started")

    monkeypatch.setattr("millrace.local.children.start", fail)
    monkeypatch.setattr(run, "find_prism", lambda *_: None)


def test_an_option_that_nobody_knows(capsys, tmp_path):
    assert run.main(["--data", str(tmp_path), "--order_wait=3"]) == 2
    assert capsys.readouterr().err == "millrace local: no such option: --order_wait=3; see --help.\n"


def test_a_value_that_the_job_could_not_read(capsys, tmp_path):
    assert run.main(["--data", str(tmp_path), "--shards=many"]) == 2
    assert capsys.readouterr().err == "millrace local: --shards: invalid int value: 'many'; see --help.\n"


@pytest.mark.parametrize("rate", ["abc", "0", "-1", "inf", "nan"])
def test_a_rate_that_is_none(capsys, rate):
    with pytest.raises(SystemExit, match="2"):
        run.main([f"--rate={rate}"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"must be events a second above 0, got '{rate}'; for no traffic use --no-demo")


def test_tables_elsewhere(capsys):
    with pytest.raises(SystemExit, match="2"):
        run.main(["--archive=gs://bucket/archive"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("--archive=gs://bucket/archive: a local run keeps its tables and its Pub/Sub in --data")


def test_a_pubsub_that_is_not_there(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:1")
    assert run.main(["--data", str(tmp_path)]) == 2
    using, refusal = capsys.readouterr().err.splitlines()
    assert using == "Using the Pub/Sub at 127.0.0.1:1 (PUBSUB_EMULATOR_HOST)."
    asked = "cannot create projects/millrace-local/topics/events at 127.0.0.1:1: is Pub/Sub running there?"
    assert refusal.startswith(f"millrace local: {asked} (503 ")


@pytest.mark.parametrize("port", ["-1", "65536", "http", ""])
def test_a_port_that_is_none(capsys, port):
    with pytest.raises(SystemExit, match="2"):
        run.main([f"--port={port}"])
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"must be a port from 0 to 65535, got {port!r}")


def test_sdks_that_are_not_installed(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("millrace.local.sample.find_spec", lambda name: None if name == "segment" else object())
    assert run.main(["--data", str(tmp_path)]) == 2
    asked = "the sample traffic needs the SDKs: pip install 'millrace[local]', or say --no-demo"
    assert capsys.readouterr().err == f"millrace local: {asked}\n"


def test_sources_with_mistakes_or_with_other_keys(capsys, tmp_path):
    (tmp_path / "millrace.yaml").write_text("sources:\n  shop-web: 7\n")
    assert run.main(["--data", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"millrace local: {tmp_path / 'millrace.yaml'}:2: ")


def test_a_configuration_with_a_mistake(capsys, tmp_path):
    make_sources(tmp_path)
    file = tmp_path / "millrace.yaml"
    file.write_text(
        file.read_text(encoding="utf-8").replace("enrich: [user_agent", "enrich: [user_agnt"), encoding="utf-8"
    )
    assert run.main(["--data", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.endswith(": enrich: there is no enrichment 'user_agnt'; did you mean user_agent?\n")

"""The start: what cannot work is refused with exit code 2 and one line that says what to do."""

import argparse
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from millrace.pipelines import events
from millrace.pipelines.options import PROBLEMS, EventOptions
from tests.support.job import SPECS
from tests.support.pubsub import PubSub, Server

ROOT = Path(__file__).parents[2]
NAME = "projects/my-project/subscriptions/orders"
_PARSER = argparse.ArgumentParser(add_help=False)
EventOptions._add_argparse_args(_PARSER)
OURS = [action.dest for action in _PARSER._actions]


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> str:
    """No Pub/Sub at the address that is set, unless a test starts one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", address)
    return address


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line that main refuses to start with."""
    assert events.main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("millrace events: ")
    assert err.count("\n") == 1
    return err.removeprefix("millrace events: ").rstrip("\n")


def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "pipelines.events", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_from_the_checkout_a_missing_subscription_is_one_line():
    line = "millrace events: --subscription is missing: give projects/PROJECT/subscriptions/NAME.\n"
    assert run() == (2, "", line)


def test_from_the_checkout_an_unreachable_pub_sub_is_one_line(nobody: str, tmp_path: Path):
    code, out, err = run(f"--subscription={NAME}", f"--archive={tmp_path / 'archive'}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    where = f"millrace events: cannot reach the emulator at {nobody} (PUBSUB_EMULATOR_HOST): is it running, "
    assert err.startswith(where + "and is the address right? (")
    assert not (tmp_path / "archive").exists()


def test_from_the_checkout_missing_credentials_are_one_line(tmp_path: Path):
    kept = {"PUBSUB_EMULATOR_HOST": "", "GOOGLE_APPLICATION_CREDENTIALS": ""}
    alone = {"HOME": str(tmp_path), "CLOUDSDK_CONFIG": str(tmp_path), "NO_GCE_CHECK": "true"}
    code, out, err = run(f"--subscription={NAME}", **kept, **alone)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("millrace events: no Google credentials (")
    assert err.endswith(
        "run `gcloud auth application-default login`, or set PUBSUB_EMULATOR_HOST for a local broker.\n"
    )


@pytest.mark.parametrize(
    "name",
    [
        "orders",
        "projects/my-project/topics/orders",
        "projects/my-project/subscriptions/",
        "projects//subscriptions/orders",
        "projects/my-project/subscriptions/9orders",
        "projects/my-project/subscriptions/orders/x",
        "projects/my project/subscriptions/orders",
        "projects/my-project/subscriptions/bücher",
        f"{NAME}\n",
    ],
)
def test_a_name_that_is_none_is_refused(capsys: pytest.CaptureFixture[str], name: str):
    assert events.main([f"--subscription={name}"]) == 2
    assert capsys.readouterr() == (
        "",
        f"millrace events: --subscription={name} is no subscription: write projects/PROJECT/subscriptions/NAME.\n",
    )


@pytest.mark.parametrize("project", ["test", "my-project", "example.com:shop"])
def test_any_project_that_pub_sub_may_know_is_asked_for(
    capsys: pytest.CaptureFixture[str], pubsub_server: Server, project: str
):
    name = f"projects/{project}/subscriptions/nowhere"
    assert refusal(capsys, f"--subscription={name}") == (
        f"{name} does not exist at the emulator at {pubsub_server.address} (PUBSUB_EMULATOR_HOST): create it (gcloud "
        f"pubsub subscriptions create nowhere --project={project} --topic=TOPIC), or correct the project or name."
    )


def test_an_archive_that_cannot_be_written_is_refused(
    capsys: pytest.CaptureFixture[str], pubsub_server: Server, tmp_path: Path
):
    with PubSub(pubsub_server.address) as pubsub:
        subscription = pubsub.create_subscription(pubsub.create_topic())
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "photo.jpg").write_text("mine")
    fine = [f"--{name}={tmp_path / name}" for name in ("duplicates", "dead_letters")]
    given = (f"--subscription={subscription}", *fine)
    assert refusal(capsys, *given, f"--archive={tmp_path / 'file'}") == (
        f"Cannot write to {tmp_path / 'file'} (File exists): choose a folder that this user may write to."
    )
    assert refusal(capsys, *given, f"--archive={tmp_path / 'others'}") == (
        f"{tmp_path / 'others'} is not a Delta table and holds other things (photo.jpg): give a new or empty folder."
    )
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("--nonsense=1", "no such option: --nonsense=1; see --help."),
        ("--subscript=x", "no such option: --subscript=x; see --help."),
        ("stray", "no such option: stray; see --help."),
        ("--shards=many", "--shards: invalid int value: 'many'; see --help."),
        ("--shards", "--shards: expected one argument; see --help."),
        ("--order_wait_s=ten", "--order_wait_s: invalid float value: 'ten'; see --help."),
        ("--order_wait_s=-1", "--order_wait_s must not be negative, got -1."),
        ("--order_wait_s=inf", "--order_wait_s must be a finite number, got inf."),
        ("--order_wait_s=nan", "--order_wait_s must be a finite number, got nan."),
        ("--order_window_s=0.5", "--order_window_s must be at least 1, got 0.5."),
        ("--order_turns=0", "--order_turns must be from 1 to 100, got 0."),
        (
            "--order_turns=3",
            "--order_window_s=5 is not 3 turns of whole milliseconds: choose another window, or other --order_turns.",
        ),
        ("--shards=0", "--shards must be at least 1, got 0."),
        ("--dedup_horizon_s=-0.1", "--dedup_horizon_s must not be negative, got -0.1."),
        ("--dedup_max_ids=0", "--dedup_max_ids must be at least 1, got 0."),
        ("--dedup_shards=0", "--dedup_shards must be at least 1, got 0."),
        ("--commit_horizon_s=-1", "--commit_horizon_s must not be negative, got -1."),
        ("--readers=21", "--readers must be from 1 to 20, got 21."),
        ("--read_slack_s=-1", "--read_slack_s must not be negative, got -1."),
        ("--read_open_messages=0", "--read_open_messages must be at least 1, got 0."),
        ("--read_open_mb=0", "--read_open_mb must be at least 1, got 0."),
        ("--decode_batch_rows=0", "--decode_batch_rows must be at least 1, got 0."),
        ("--decode_processes=65", "--decode_processes must be from 0 to 64, got 65."),
        ("--decode_body_mb=0", "--decode_body_mb must be at least 1, got 0."),
        ("--compact_every_s=-1", "--compact_every_s must not be negative, got -1."),
        ("--progress_s=-1", "--progress_s must not be negative, got -1."),
        ("--runner=BundleBasedDirectRunner",
         ("--runner=BundleBasedDirectRunner is refused: it acknowledges messages before it processes them, so a crash "
          "loses events. Use DirectRunner (Prism).")),
        ("--runner=FnApiRunner",
         ("--runner=FnApiRunner is refused: it is for batches: a stream's windows never end there. "
          "Use DirectRunner (Prism).")),
        ("--runner=Nonsense",
         ("--runner=Nonsense is not known; use one of DataflowRunner, DirectRunner, FlinkRunner, PortableRunner, "
          "PrismRunner, SparkRunner.")),
    ],
)  # fmt: skip
def test_an_option_that_cannot_be_used_is_refused(capsys: pytest.CaptureFixture[str], given: str, line: str):
    assert refusal(capsys, f"--subscription={NAME}", given) == line


def test_on_dataflow_a_table_on_one_machine_s_disk_is_refused(capsys: pytest.CaptureFixture[str]):
    given = (f"--subscription={NAME}", "--runner=DataflowRunner", "--archive=gs://b/archive")
    assert refusal(capsys, *given, "--duplicates=gs://b/duplicates") == (
        "--dead_letters=data/dead_letters is on one machine's disk, and Dataflow's workers share none: "
        "give gs://BUCKET/FOLDER."
    )


def test_what_beam_misses_is_said_in_one_line(capsys: pytest.CaptureFixture[str]):
    tables = [f"--{name}=gs://b/{name}" for name in SPECS]
    assert refusal(capsys, f"--subscription={NAME}", "--runner=DataflowRunner", *tables) == (
        "Missing GCS path option: temp_location. Missing GCS path option: staging_location. "
        "Missing required option: project. Missing required option: region. See Beam's options."
    )


def test_every_number_has_a_bound():
    numbers = [name for name in OURS if type(getattr(EventOptions([]), name)) in {int, float}]
    assert sorted(name for name, _, _ in PROBLEMS) == sorted(numbers)


def test_help_lists_every_option_with_its_meaning_and_default(capsys: pytest.CaptureFixture[str]):
    assert events.main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    described = " ".join(out.partition("\nMillrace:\n")[2].split())
    options = EventOptions([])
    for name, following in zip(OURS, [*OURS[1:], ""], strict=True):
        _, _, text = described.partition(f" --{name} " if name != OURS[0] else f"--{name} ")
        text = text.partition(f" --{following} ")[0]
        default = getattr(options, name)
        assert len(text) > 60, f"--{name} says too little: {text}"
        if name != "subscription":
            shown = "off" if default is False else f"{default:,}" if type(default) is int else f"{default:g}" if type(
                default) is float else default  # fmt: skip
            assert f"Default: {shown}" in text.replace(str(default), str(shown)), f"--{name} names no default: {text}"
        if name.endswith("_s"):
            assert "second" in text, f"--{name} names no unit: {text}"
    assert all(len(line) <= 120 for line in out.splitlines())

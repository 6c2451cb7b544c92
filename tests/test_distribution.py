"""What users install and what Beam ships to its workers: wheel and source distribution, whole and nothing else."""

import email
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from apache_beam.runners.portability.stager import Stager

ROOT = Path(__file__).parent.parent
TOP = ("config", "collector", "schemas", "transforms", "sinks", "delivery", "pipelines", "broker", "local", "testing")
SHOP = ("collector/shop", "collector/shop/sdk")
PACKAGES = ("transforms/enrich", "transforms/custom")
"""Packages inside those folders."""
TEMPLATES = ("testing/templates",)
SCHEMAS = sorted(path.name for path in (ROOT / "schemas").glob("*.avsc"))

# Run where there is no checkout: the contract from Avro, and every module there is.
USE = """
import importlib, pkgutil, sys
import millrace
from millrace.schemas.event import ARCHIVE
for module in pkgutil.walk_packages(millrace.__path__, "millrace."):
    importlib.import_module(module.name)
assert not {"schemas", "tests", "local", "broker"} & set(sys.modules)
print(millrace.__file__)
print(*ARCHIVE.names)
"""


def modules() -> set[str]:
    """Return every file of the checkout that belongs into a wheel, by its place there."""
    folders = (*TOP, *PACKAGES, "schemas/added")
    packages = {"millrace": ROOT / "millrace"} | {f"millrace/{folder}": ROOT / folder for folder in folders}
    files = [
        (package, folder, file)
        for package, folder in packages.items()
        for file in folder.iterdir()
        if file.suffix in {".py", ".avsc", ".typed", ".lark", ".lua"}
    ]
    collector = ROOT / "collector"
    files += [("millrace/collector", collector, file) for file in (collector / "shop").rglob("*") if file.is_file()]
    testing = ROOT / "testing"
    files += [("millrace/testing", testing, file) for file in (testing / "templates").iterdir()]
    return {f"{package}/{file.relative_to(folder)}" for package, folder, file in files}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that git would hold, since a build leaves its traces where it runs."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=False
    )
    names = listed.stdout.decode().splitlines() or [
        str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if not {".venv", ".cache", ".git"} & set(path.parts)
    ]
    copy = tmp_path_factory.mktemp("source")
    for name in names:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--wheel-dir", str(target), str(source))
    (built,) = target.glob("*.whl")
    return built


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_holds_the_packages_the_contracts_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
        (info,) = {name.partition("/")[0] for name in names} - {"millrace"}
        entry_points = content.read(f"{info}/entry_points.txt").decode().split()
        metadata = email.message_from_bytes(content.read(f"{info}/METADATA"))
    assert {name for name in names if not name.startswith(f"{info}/")} == modules()
    assert {f"millrace/schemas/{name}" for name in SCHEMAS} | {"millrace/py.typed"} <= names
    console = ["[console_scripts]", "millrace", "=", "millrace.cli:main"]
    assert entry_points == [*console, "[pytest11]", "millrace", "=", "millrace.testing.plugin"]
    assert (metadata["Name"], metadata["License"] or metadata["License-Expression"]) == ("millrace", "Apache-2.0")
    assert metadata["Requires-Python"] == ">=3.11"
    assert f"{info}/licenses/LICENSE" in names or f"{info}/LICENSE" in names


def test_the_installed_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", symlinks=True)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    pip("install", "--no-deps", "--target", str(site), str(wheel))
    # The dependencies, without the checkout: a line of a .pth file that only names a folder runs no other .pth file.
    others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "others.pth").write_text("\n".join(others))
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(tmp_path / "venv" / "bin" / "python"), "-W", "ignore", "-c", USE]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    place, columns = done.stdout.splitlines()
    assert Path(place).is_relative_to(site)
    assert {"message_id", "user_key", "occurred_at", "properties"} <= set(columns.split())


def test_the_source_distribution_that_beam_ships_to_workers_is_whole(source: Path, tmp_path: Path) -> None:
    built = Path(Stager._build_setup_package(str(source / "setup.py"), str(tmp_path)))
    with tarfile.open(built) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    # At the top there are millrace/ itself and, as in the checkout, the folders that are installed inside it.
    expected = {name.removeprefix("millrace/") if name.split("/")[1] in TOP else name for name in modules()}
    made = {name for name in names if ".egg-info" in name or name in {"", "PKG-INFO", "setup.cfg"}}
    around = {"README.md", "LICENSE", "MANIFEST.in", "setup.py", "pyproject.toml"}
    assert {
        name for name in names - made if name not in {"millrace", "schemas/added", *TOP, *PACKAGES, *TEMPLATES, *SHOP}
    } == expected | around


def test_the_wheel_is_the_same_when_built_from_the_source_distribution(
    source: Path, wheel: Path, tmp_path: Path
) -> None:
    sdist = Stager._build_setup_package(str(source / "setup.py"), str(tmp_path))
    pip("wheel", "--no-deps", "--wheel-dir", str(tmp_path), sdist)
    (again,) = tmp_path.glob("*.whl")
    assert contents(again) == contents(wheel)


def contents(wheel: Path) -> dict[str, int]:
    with zipfile.ZipFile(wheel) as content:
        return {member.filename: member.CRC for member in content.infolist() if not member.filename.endswith("RECORD")}

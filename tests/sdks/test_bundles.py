"""The demo's SDKs are the published ones, byte for byte."""

import json
from pathlib import Path

import pytest

from millrace.collector import demo

SDKS = Path(demo.__file__).parent / "shop" / "sdk"
SOURCES = {
    "segment": ("@segment/analytics-next", "dist/umd/standalone.js", "LICENSE.MD"),
    "rudderstack": ("@rudderstack/analytics-js", "dist/npm/modern/bundled/umd/index.js", "LICENSE.md"),
}


@pytest.mark.parametrize("sdk", SOURCES)
def test_a_bundle_and_its_licence_are_those_of_the_package(node_packages: Path, sdk: str) -> None:
    name, bundle, licence = SOURCES[sdk]
    package = node_packages / name
    assert (SDKS / f"{sdk}.js").read_bytes() == (package / bundle).read_bytes()
    assert (SDKS / f"{sdk}.LICENSE.txt").read_bytes() == (package / licence).read_bytes()
    told = json.loads((package / "package.json").read_text())
    assert told["license"] == "MIT"
    assert f"`{name}` {told['version']}, `{bundle}`" in (SDKS / "README.md").read_text()

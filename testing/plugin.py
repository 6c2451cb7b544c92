"""The pytest plugin: the fixture `golden` and its option. Installed with Millrace, under the name `millrace`."""

import pytest

from millrace.testing.golden import Golden


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("millrace").addoption(
        "--update-golden", action="store_true", help="write the golden files anew instead of comparing with them"
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compare with a file beside the test: `golden(result.rows)`."""
    update = bool(request.config.getoption("--update-golden"))
    return Golden(request.path.parent / "golden", request.node.name, update=update)

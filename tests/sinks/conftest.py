"""Real servers for the tests of sinks, each started once; a test takes names of its own in them."""

import os
from collections.abc import Iterator
from typing import NoReturn

import pytest

from tests.support.node import UnavailableError
from tests.support.postgres import PostgresServer, running_postgres
from tests.support.redis import RedisServer, running_redis


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A PostgreSQL server that tests may stop and kill, if they start it again."""
    try:
        with running_postgres(tmp_path_factory.mktemp("postgres")) as server:
            yield server
    except UnavailableError as error:
        _unavailable(error)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis server with an append-only file, that tests may stop and kill, if they start it again."""
    try:
        with running_redis(tmp_path_factory.mktemp("redis")) as server:
            yield server
    except UnavailableError as error:
        _unavailable(error)


def _unavailable(error: UnavailableError) -> NoReturn:
    """Skip what this machine cannot run; in CI that is a failure, since .ci/run installs all of it."""
    if os.environ.get("CI"):
        pytest.fail(str(error))
    pytest.skip(str(error))

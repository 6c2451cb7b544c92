"""The sinks postgres and redis over TLS: who the server is, is looked at where that is asked for."""

import asyncio
import shutil
from pathlib import Path

import asyncpg
import pytest

from millrace.sinks.postgres import Postgres
from millrace.sinks.redis import Redis
from millrace.sinks.sink import DELIVERED, CannotOpenSinkError, Sink, SinkDownError
from tests.support.certificates import write_certificates
from tests.support.deliveries import Remembered, archived, delivery
from tests.support.postgres import PostgresServer, free_port, running_postgres
from tests.support.redis import RedisServer, running_redis


async def _delivers(sink: Sink) -> object:
    try:
        await sink.open(Remembered())
        return await sink.deliver(delivery([archived("m1")]))
    except (CannotOpenSinkError, SinkDownError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        await sink.close()


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    folder = tmp_path / "certificates"
    for each in (folder, folder / "of others"):
        each.mkdir()
        write_certificates(each)
    return folder


def test_postgres_with_tls_is_verified_where_that_is_asked_for(
    postgres_server: PostgresServer, tmp_path: Path, certificates: Path
):
    """The session's server is asked for only so that the test is skipped where there is none."""
    with running_postgres(tmp_path) as server:
        for name in ("server.crt", "server.key"):  # which have to be the server's own
            shutil.copy(certificates / name, server.folder / "data" / name)
            (server.folder / "data" / name).chmod(0o600)
            shutil.chown(server.folder / "data" / name, (server.folder / "data").owner())
        server.stop()
        with (server.folder / "data" / "postgresql.conf").open("a") as settings:
            settings.write("\nssl = on\n")
        server.start()
        dsn = server.dsn

        async def main() -> tuple[list[object], bool]:
            found = [
                await _delivers(Postgres(dsn, tls="verify-full", ca=str(certificates / "ca.crt"))),
                await _delivers(Postgres(dsn, tls="verify-full", ca=str(certificates / "of others" / "ca.crt"))),
                await _delivers(Postgres(dsn, tls="verify-full")),
                await _delivers(Postgres(f"{dsn}?sslmode=verify-full&sslrootcert={certificates}/of others/ca.crt")),
                await _delivers(Postgres(dsn, tls="disable")),
                await _delivers(Postgres(dsn, tls="require")),
            ]
            by_default = Postgres(dsn)
            await by_default.open(Remembered())
            watcher = await asyncpg.connect(dsn, ssl="disable")
            is_tls = await watcher.fetchval(
                "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'millrace'"
            )
            await watcher.close()
            await by_default.close()
            return found, is_tls

        found, is_tls = asyncio.run(main())
    refused = "CannotOpenSinkError: PostgreSQL cannot be used as configured: [SSL: CERTIFICATE_VERIFY_FAILED]"
    assert [str(each)[: len(refused)] if isinstance(each, str) else each for each in found] == [
        [DELIVERED],
        refused,
        refused,
        refused,
        [DELIVERED],
        [DELIVERED],
    ]
    assert is_tls


def test_redis_with_tls_is_verified(redis_server: RedisServer, tmp_path: Path, certificates: Path):
    files = [f"--tls-{kind}-file" for kind in ("cert", "key")] + ["--tls-ca-cert-file"]
    names = [certificates / name for name in ("server.crt", "server.key", "ca.crt")]
    flags = [part for flag, name in zip(files, names, strict=True) for part in (flag, str(name))]
    port = free_port()
    with running_redis(tmp_path, ("--save", "", "--tls-port", str(port), "--tls-auth-clients", "no", *flags)):
        url = f"rediss://127.0.0.1:{port}/0"

        async def main() -> list[object]:
            return [
                await _delivers(Redis(url, ca=str(certificates / "ca.crt"))),
                await _delivers(Redis(url, ca=str(certificates / "of others" / "ca.crt"))),
                await _delivers(Redis(url)),
                await _delivers(Redis(url, ca="/no/such")),
            ]

        found = asyncio.run(main())
    assert found[0] == [DELIVERED]
    assert [str(each).partition(":")[0] for each in found[1:]] == ["CannotOpenSinkError"] * 3

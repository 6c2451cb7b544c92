"""What the sink `redis` says when its server cannot be used: a sentence, whatever the client's errors are called."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from redis import exceptions

from millrace.sinks.redis import Redis
from millrace.sinks.redis_errors import down
from millrace.sinks.sink import CannotOpenSinkError, SinkDownError
from tests.support.deliveries import Remembered

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def why_down(url: str) -> str:
    sink = Redis(url, timeout_s=0.2)
    try:
        await sink.open(Remembered())
    except (SinkDownError, CannotOpenSinkError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        await sink.close()
    return "open"


def says(*lines: bytes, closes: bool = False) -> Answer:
    """A server that answers each request with the next of these; then it says nothing, or closes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for line in lines:
            if not await reader.read(65_536):
                break
            writer.write(line + b"\r\n")
        if not closes:
            await reader.read(-1)
        writer.close()

    return answer


@pytest.mark.parametrize(
    ("answer", "scheme", "said"),
    [
        (says(), "redis", "SinkDownError: Redis at {place} does not answer in time"),
        (says(closes=True), "redis", "SinkDownError: Redis at {place} cannot be reached: the connection was closed"),
        (
            says(*[b"HTTP/1.1 400 Bad Request"] * 9),
            "redis",
            "SinkDownError: Redis at {place} is not a Redis: what answers there speaks another protocol",
        ),
        (
            says(*[b"-NOREPLICAS Not enough good replicas to write."] * 9),
            "redis",
            "SinkDownError: Redis at {place} refuses the profiles: NOREPLICAS Not enough good replicas to write",
        ),
        (
            says(*[b"-MOVED 1234 10.0.0.1:6379"] * 9),
            "redis",
            (
                "SinkDownError: Redis at {place} is a node of a cluster, which this sink cannot use: name a Redis that "
                "stands alone in url"
            ),
        ),
        (
            says(*[b"-ERR max number of clients reached"] * 9),
            "redis",
            "SinkDownError: Redis at {place} has no connection left (maxclients)",
        ),
        (
            says(*[b"-NOAUTH Authentication required."] * 9),
            "redis",
            "CannotOpenSinkError: Redis at {place} refuses the user, or what it may do: Authentication required",
        ),
        (
            says(b"HTTP/1.1 400 Bad Request", closes=True),
            "rediss",
            "SinkDownError: Redis at {place} cannot be reached: TLS fails (WRONG_VERSION_NUMBER)",
        ),
    ],
)
def test_what_a_server_answers_is_told_in_a_sentence(answer: Answer, scheme: str, said: str) -> None:
    async def story() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            place = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            assert await why_down(f"{scheme}://{place}/0") == said.format(place=place)

    asyncio.run(story())


def test_a_server_that_is_not_there_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
    begins = "SinkDownError: Redis at"
    refused = f"{begins} {place} cannot be reached: nothing listens there"
    assert asyncio.run(why_down(f"redis://{place}/0")) == refused
    monkeypatch.setenv("URL", f"redis://ann:secret@{place}/0")  # of a url that is a secret only the place is told
    assert asyncio.run(why_down("env:URL")) == refused
    path = tmp_path / "redis.sock"
    assert asyncio.run(why_down(f"unix://{path}")) == f"{begins} {path} cannot be reached: No such file or directory"


@pytest.mark.parametrize(
    ("error", "said", "after_s"),
    [
        (exceptions.BusyLoadingError("Redis is loading the dataset in memory"), "is loading its data", 1.0),
        (
            exceptions.ReadOnlyError("You can't write"),
            "is a replica that takes no writes: name the primary in url",
            None,
        ),
        (
            exceptions.OutOfMemoryError("command not allowed"),
            "is out of memory (maxmemory): give it more, or let profiles go with ttl_days",
            None,
        ),
        (ConnectionResetError(104, "Connection reset by peer"), "cannot be reached: Connection reset by peer", None),
        (exceptions.ConnectionError("Connection lost"), "cannot be reached: the connection was closed", None),
    ],
)
def test_what_comes_of_a_call_is_told_in_a_sentence(error: Exception, said: str, after_s: float | None) -> None:
    found = down(error, "db:6379")
    assert (found.detail, found.after_s) == (f"Redis at db:6379 {said}", after_s)

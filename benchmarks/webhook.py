"""HTTP clients for the sink `webhook`, one process each, against one receiver: the measurement of decision 12.

    python -m benchmarks.webhook [--events 8000]

Every client sends the same signed request of 700 bytes, one event each, over connections that it keeps, to Node.js on
the same two cores: first as fast as it goes, then to a receiver that takes 500 ms for each answer. `sink` is the whole
of it: rows become JSON, are signed, sent, and judged. Needs Node.js, and `pip install aiohttp curl_cffi 'httpx[http2]'`
beside what `.[test]` has.
"""

import argparse
import asyncio
import contextlib
import importlib
import os
import platform
import resource
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvloop

from millrace.sinks.addresses import read_url
from millrace.sinks.http_connection import Request
from millrace.sinks.http_pool import Pool
from millrace.sinks.sink import DELIVERED
from tests.support.webhooks import HOST, Hook, NoMemory, delivery, look_up_here, receiving

Send = Callable[[int], Awaitable[None]]  # so many events are under way, each a request, when it is called for each

BODY = b'{"message_id":"m-1","properties":"%b"}' % (b"x" * 660)
HEADERS = {
    "content-type": "application/json",
    "user-agent": "millrace",
    "webhook-id": "m-1",
    "idempotency-key": "m-1",
    "webhook-timestamp": "1700000000",
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}


def _tls(ca_file: str, protocol: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["h2"] if protocol == "h2" else ["http/1.1"])
    return context


@contextlib.asynccontextmanager
async def _ours(url: str, ca_file: str, protocol: str, _at_once: int) -> AsyncIterator[Send]:
    to = read_url(url, allow_http=True, allow_private=True)
    pool = Pool(to, look_up_here, _tls(ca_file, protocol), allow_private=True, max_connections=2_000)
    request = Request(b"POST", [(name.encode(), value.encode()) for name, value in HEADERS.items()], BODY)

    async def send(_number: int) -> None:
        assert (await pool.request(request, 60)).status == 200

    yield send
    await pool.close()


@contextlib.asynccontextmanager
async def _httpx(url: str, ca_file: str, protocol: str, at_once: int) -> AsyncIterator[Send]:
    httpx, network = importlib.import_module("httpx"), importlib.import_module("httpcore._backends.auto")

    class Here(network.AutoBackend):  # type: ignore[name-defined]
        async def connect_tcp(self, host: str, port: int, **given: Any) -> Any:
            return await super().connect_tcp("127.0.0.1" if host == HOST else host, port, **given)

    connections = max(1, at_once // 100) if protocol == "h2" else at_once
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    tls = _tls(ca_file, protocol)
    transport = httpx.AsyncHTTPTransport(verify=tls, http2=protocol == "h2", limits=limits, trust_env=False)
    transport._pool._network_backend = Here()  # noqa: SLF001  it has no public place for a resolver
    async with httpx.AsyncClient(transport=transport, timeout=None) as client:

        async def send(_number: int) -> None:
            assert (await client.post(url, content=BODY, headers=HEADERS)).status_code == 200

        yield send


@contextlib.asynccontextmanager
async def _aiohttp(url: str, ca_file: str, protocol: str, _at_once: int) -> AsyncIterator[Send]:
    aiohttp = importlib.import_module("aiohttp")
    resolver = importlib.import_module("aiohttp.abc").AbstractResolver

    class Here(resolver):  # type: ignore[misc,valid-type]
        async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[dict[str, Any]]:
            found = {"hostname": host, "host": "127.0.0.1", "port": port, "proto": 0, "flags": family & 0}
            return [{**found, "family": socket.AF_INET}]

        async def close(self) -> None:
            pass

    connector = aiohttp.TCPConnector(limit=0, ssl=_tls(ca_file, protocol), resolver=Here(), keepalive_timeout=60)
    async with aiohttp.ClientSession(connector=connector) as client:

        async def send(_number: int) -> None:
            async with client.post(url, data=BODY, headers=HEADERS, allow_redirects=False) as answer:
                assert answer.status == 200
                await answer.content.read(65_536)

        yield send


@contextlib.asynccontextmanager
async def _curl(url: str, ca_file: str, protocol: str, at_once: int) -> AsyncIterator[Send]:
    curl, constants = importlib.import_module("curl_cffi"), importlib.import_module("curl_cffi.const")
    http = constants.CurlHttpVersion
    client = curl.AsyncSession(
        max_clients=at_once,
        verify=ca_file,
        http_version=http.V2TLS if protocol == "h2" else http.V1_1,
        curl_options={
            constants.CurlOpt.RESOLVE: [f"{HOST}:{url.rpartition(':')[2].partition('/')[0]}:127.0.0.1"],
            constants.CurlOpt.PIPEWAIT: 1,
        },
        allow_redirects=False,
        trust_env=False,
        default_headers=False,
        timeout=60,
    )
    client.acurl.setopt(constants.CurlMOpt.MAXCONNECTS, 2_000)

    async def send(_number: int) -> None:
        assert (await client.post(url, data=BODY, headers=HEADERS)).status_code == 200

    yield send
    await client.close()


@contextlib.asynccontextmanager
async def _sink(url: str, ca_file: str, protocol: str, _at_once: int) -> AsyncIterator[Send]:
    os.environ["HOOK_SECRET"] = "twenty-four random bytes"  # noqa: S105  of this measurement
    sink = Hook(url, "env:HOOK_SECRET", single=True, allow_private=True, ca_file=ca_file, timeout_s=60)
    await sink.open(NoMemory())
    if protocol != "h2":
        sink._senders[0].pool._tls.set_alpn_protocols(["http/1.1"])  # type: ignore[union-attr]  # noqa: SLF001
    ids = [f"m-{number}" for number in range(100)]
    batch = delivery(ids, properties={each: {"text": "x" * 620} for each in ids})

    async def send(number: int) -> None:
        if number % 100 == 0:  # one delivery for every hundred
            assert set(await sink.deliver(batch)) == {DELIVERED}

    yield send
    await sink.close()


CLIENTS = {"ours": _ours, "sink": _sink, "aiohttp": _aiohttp, "curl_cffi": _curl, "httpx": _httpx}
CASES = [
    (name, protocol, delay_ms, at_once)
    for delay_ms, at_once in ((0, 100), (500, 1_600))
    for protocol in ("http/1.1", "h2")
    for name in CLIENTS
    if not (name == "aiohttp" and protocol == "h2")  # it has none
]


async def _measure(client: contextlib.AbstractAsyncContextManager[Send], at_once: int, events: int, step: int) -> str:
    async with client as send:
        await asyncio.gather(*map(send, range(at_once)))  # opens the connections
        numbers = iter(range(at_once, at_once + events))

        async def work() -> None:
            for number in numbers:
                await send(number)

        start_s, cpu_s = time.perf_counter(), time.process_time()
        await asyncio.gather(*[work() for _ in range(at_once // step)])
        took_s, cpu_s = time.perf_counter() - start_s, time.process_time() - cpu_s
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return f"{events / took_s:,.0f} | {cpu_s / events * 1e6:.0f} | {mib}"


def main() -> None:
    """Measure all, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=8_000)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        name, url, ca_file, at_once = given.one
        name, _, protocol = name.partition(" ")
        client = CLIENTS[name](url, ca_file, protocol, int(at_once))
        print(uvloop.run(_measure(client, int(at_once), given.events, 100 if name == "sink" else 1)))
        return
    versions = ", ".join(
        f"{each} {version(each)}" for each in ("httptools", "h2", "uvloop", "aiohttp", "curl_cffi", "httpx")
    )
    print(f"Python {platform.python_version()}, {versions}\n")
    print("| answers after | protocol | client | requests/s | µs of CPU a request | MiB |")
    print("| --- | --- | --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder, receiving(Path(folder), "h2", streams=128) as receiver:
        for name, protocol, delay_ms, at_once in CASES:
            url = f"https://{HOST}:{receiver.port}/quick/{delay_ms}"
            one = [f"{name} {protocol}", url, str(receiver.ca_file), str(at_once)]
            command = [sys.executable, "-m", "benchmarks.webhook", "--events", str(given.events), "--one", *one]
            try:
                found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
                said = found.stdout.strip() or found.stderr.strip().splitlines()[-1]
            except subprocess.TimeoutExpired:
                said = "no end in 60 s | |"
            print(f"| {delay_ms} ms | {protocol} | {name} | {said} |", flush=True)


if __name__ == "__main__":
    main()

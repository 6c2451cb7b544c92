"""The webhook and names: addresses that are not allowed, that change, that do not answer; certificates."""

import asyncio
import ipaddress
import itertools
import socket
import ssl
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest

from millrace.sinks import addresses, http_pool
from millrace.sinks.sink import DELIVERED, Fault, Outcome, Retry, SinkDownError
from tests.support.raw_http import (
    CLOSING,
    OK,
    Handler,
    Tls,
    answering,
    fail_to_look_up,
    named,
    opened,
    plain_hook,
    read_request,
    serving,
    why_down,
)
from tests.support.webhooks import HOST, delivery


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Tls(tmp_path)


def test_a_name_that_leads_to_a_private_address_later_is_refused_at_that_moment(monkeypatch):
    """DNS rebinding: 127.0.0.1 stands for a public address here, and 127.0.0.2 for the private one it moves to."""
    networks = [each for each in addresses._NOT_PUBLIC_4 if str(each) != "127.0.0.0/8"]
    monkeypatch.setattr(addresses, "_NOT_PUBLIC_4", (*networks, ipaddress.IPv4Network("127.0.0.2/32")))
    monkeypatch.setattr(http_pool, "_KNOWN_S", 0.0)
    reached: list[str] = []
    answer = ["127.0.0.1"]

    def handler(name: str) -> Handler:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            reached.append(name)
            await read_request(reader)
            writer.write(CLOSING)

        return serve

    async def run() -> str:
        async with serving(handler("public")) as port:
            inside = await asyncio.start_server(handler("private"), "127.0.0.2", port)
            sink = named(lambda: answer)(f"http://{HOST}:{port}/", allow_http=True)
            async with inside, opened(sink):
                assert await sink.deliver(delivery(["m-1"])) == [DELIVERED]
                answer[:] = ["127.0.0.1", "127.0.0.2"]
                with pytest.raises(SinkDownError):
                    await sink.deliver(delivery(["m-2"]))
                answer[:] = ["127.0.0.2"]
                with pytest.raises(SinkDownError) as told:
                    await sink.deliver(delivery(["m-3"]))
                answer[:] = ["127.0.0.1"]
                assert await sink.deliver(delivery(["m-4"])) == [DELIVERED]
        return told.value.detail

    assert asyncio.run(run()) == (
        "hooks.example leads to 127.0.0.2, which is no public address: nothing is sent there "
        "(allow_private: true allows it)"
    )
    assert reached == ["public", "public"]


@pytest.mark.parametrize(
    "answer", [["127.0.0.1"], ["::1"], ["169.254.169.254"], ["::ffff:127.0.0.1"], ["8.8.8.8", "127.0.0.1"]]
)
def test_without_leave_no_address_that_is_not_public_is_connected_to(answer: Sequence[str], monkeypatch):
    connected: list[str] = []

    async def connect(_pool: http_pool.Pool, address: str) -> None:
        connected.append(address)  # and no further: were the check broken, the test would leave this machine
        raise OSError

    monkeypatch.setattr(http_pool.Pool, "_connect_to", connect)
    said = asyncio.run(why_down(named(lambda: answer)(f"https://{HOST}/")))
    assert said.endswith("no public address: nothing is sent there (allow_private: true allows it)")
    assert connected == []


def test_while_a_name_cannot_be_looked_up_nothing_is_sent():
    failing = [True]

    def look() -> Sequence[str]:
        return fail_to_look_up() if failing[0] else ["127.0.0.1"]

    async def run() -> Sequence[Outcome]:
        async with serving(answering(OK)) as port, opened(plain_hook(port, named(look))) as sink:
            says = "the name hooks.example cannot be looked up: Name or service not known"
            with pytest.raises(SinkDownError, match=says):
                await sink.deliver(delivery(["m-1"]))
            failing[0] = False
            return await sink.deliver(delivery(["m-1"]))

    assert asyncio.run(run()) == [DELIVERED]


def test_a_destination_that_moves_is_followed_when_its_connections_are_old(monkeypatch):
    monkeypatch.setattr(http_pool, "_KNOWN_S", 0.0)
    answer, reached = ["127.0.0.1"], []

    def handler(name: str) -> Handler:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                await read_request(reader)
                reached.append(name)
                writer.write(OK)

        return serve

    async def run() -> None:
        async with serving(handler("old")) as port:
            new = await asyncio.start_server(handler("new"), "127.0.0.3", port)
            async with new, opened(plain_hook(port, named(lambda: answer))) as sink:
                await sink.deliver(delivery(["m-1"]))
                answer[:] = ["127.0.0.3"]
                await sink.deliver(delivery(["m-2"]))
                for connection in sink._senders[0].pool._all:
                    connection.born_s -= http_pool.MAX_AGE_S
                await sink.deliver(delivery(["m-3"]))

    asyncio.run(run())
    assert reached == ["old", "old", "new"]


def test_the_second_address_is_tried_where_the_first_does_not_answer():
    async def run() -> Sequence[Outcome]:
        two = named(lambda: ["127.0.0.9", "127.0.0.1"])
        async with serving(answering(OK)) as port, opened(plain_hook(port, two)) as sink:
            return await sink.deliver(delivery(["m-1"]))

    assert asyncio.run(run()) == [DELIVERED]


def test_a_receiver_that_takes_few_connections_gets_all_events_over_those(monkeypatch):
    monkeypatch.setattr(http_pool, "_KNOWN_S", 0.0)
    monkeypatch.setattr(http_pool, "_OPENING", 2)
    calls = itertools.count(1)

    def look() -> Sequence[str]:
        return ["127.0.0.1"] if next(calls) <= 2 else fail_to_look_up()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            await asyncio.sleep(0.002)
            writer.write(OK)

    async def run() -> Sequence[Outcome]:
        async with serving(handler) as port, opened(plain_hook(port, named(look), single=True)) as sink:
            return await sink.deliver(delivery([f"m-{n}" for n in range(100)]))

    assert asyncio.run(run()) == [DELIVERED] * 100


def test_where_only_some_requests_found_a_connection_the_others_are_tried_again(monkeypatch):
    """One in all is delivered: the rest is not down with it, and not lost."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(CLOSING)

    calls = itertools.count(1)

    def look() -> Sequence[str]:
        return ["127.0.0.1"] if next(calls) == 1 else fail_to_look_up()

    monkeypatch.setattr(http_pool, "_KNOWN_S", 0.0)
    monkeypatch.setattr(http_pool, "_OPENING", 1)

    async def run() -> Sequence[Outcome]:
        async with serving(handler) as port, opened(plain_hook(port, named(look), single=True)) as sink:
            return await sink.deliver(delivery(["m-1", "m-2", "m-3"]))

    down = Retry(Fault.UNREACHABLE, "the name hooks.example cannot be looked up: Name or service not known")
    assert asyncio.run(run()) == [DELIVERED, down, down]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def test_a_receiver_that_is_not_there_is_down():
    async def run() -> str:
        async with opened(plain_hook(_free_port(), single=True)) as sink:
            with pytest.raises(SinkDownError) as told:
                await sink.deliver(delivery([f"m-{n}" for n in range(50)]))
            return told.value.detail

    assert asyncio.run(run()).endswith("cannot be connected to: Connection refused")


def test_a_certificate_has_to_be_valid_for_the_name_in_the_url(tls: Tls):
    async def run() -> list[str]:
        async with serving(answering(OK), tls.context()) as port:
            async with opened(tls.hook(port)) as sink:
                assert await sink.deliver(delivery(["m-1"])) == [DELIVERED]
            others = (tls.hook(port, "other.example"), tls.hook(port, ca_file=None), tls.hook(port, "127.0.0.1"))
            return [await why_down(each) for each in others]

    other, unknown, literal = asyncio.run(run())
    assert "its certificate is not valid for it: Hostname mismatch" in other
    assert "its certificate is not valid for it: unable to get local issuer certificate" in unknown
    assert "its certificate is not valid for it: IP address mismatch" in literal


def test_tls_older_than_1_2_is_refused(tls: Tls):
    context = tls.context()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")

    async def run() -> tuple[str, str]:
        async with serving(answering(OK), context) as port:
            said = await why_down(tls.hook(port))
            lenient = ssl.create_default_context(cafile=tls.ca_file)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                lenient.minimum_version = ssl.TLSVersion.TLSv1
            lenient.set_ciphers("ALL:@SECLEVEL=0")
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=lenient, server_hostname=HOST)
            version: str = writer.get_extra_info("ssl_object").version()
            writer.transport.abort()
            return said, version

    said, version = asyncio.run(run())
    assert version == "TLSv1.1"  # who does not mind gets through
    assert said.endswith(("it closed the connection", "no TLS with it: TLSV1_ALERT_PROTOCOL_VERSION"))


def test_a_receiver_that_takes_a_connection_and_says_nothing_is_down(tls: Tls, monkeypatch):
    monkeypatch.setattr(http_pool, "CONNECT_S", 0.3)

    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def run() -> list[str]:
        async with serving(silent) as plain, serving(silent, tls.context("h2")) as h2:
            return [await why_down(tls.hook(plain)), await why_down(tls.hook(h2))]

    for said in asyncio.run(run()):
        assert "cannot be connected to: no connection in 0.3 s" in said

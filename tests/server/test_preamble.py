"""PROXY headers over the wire: who is believed, who is greeted, and what waiting for half of one costs."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from socket import AddressFamily
from typing import TYPE_CHECKING, Any

import pytest

from greeter import ConfigError, Greeting, Peer, serve
from greeter.core.admission import Limits
from tests.conftest import PATIENCE, greeter_process, one_loop
from tests.core.test_proxy_protocol import BU, INVALID, LOCAL, PROXY, VALID, tcp4, tcp6, v1, v2
from tests.support.peers import Outcome, connect, read_to_end, reset, until
from tests.support.service_peers import descriptors, on_every_stage
from tests.system.test_listeners import needs_ipv6

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from greeter.server import Server, Serving

    Serve = Callable[..., Serving]

pytestmark = pytest.mark.usefixtures("no_fd_leak")

NOTHING = b""
REAL = tcp4("192.0.2.1", "198.51.100.7", "56324", "443")


@pytest.fixture(autouse=True)
def _handshakes_get_no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """No handshake is under way when these servers close; a real one waits 50 ms for them."""
    monkeypatch.setattr("greeter.server.server.HANDSHAKE_GRACE", 0.0)


@pytest.fixture
def behind_a_proxy(accept: str) -> Serve:
    """A server that believes 127.0.0.1 and has no deadline that a test could wait for."""

    def start(greeting: Any = "$host $port", **options: Any) -> Serving:
        where = {} if {"path", "host"} & options.keys() else {"host": "127.0.0.1"}
        patience = {"greet_timeout": 600, "linger_timeout": 600}
        defaults = {"port": 0, "proxy_from": ["127.0.0.1"], "access_log": False, **patience}
        return serve(greeting, **{**defaults, **where, "accept": accept, **options})

    return start


def failed(server: Server) -> dict[str, int]:
    return {why: count for why, count in server.stats.failed.items() if count}


def rejected(server: Server) -> dict[str, int]:
    return {why: count for why, count in server.stats.rejected.items() if count}


async def none_is_open(server: Server) -> None:
    """No connection is open, and each is in one of the counters."""
    await until(lambda: server.stats.open == 0, "no connection is open")
    stats = server.stats
    assert stats.accepted == stats.greeted + sum(stats.failed.values()) + sum(stats.rejected.values())


async def say(port: int, data: bytes) -> socket.socket:
    """A proxy that has connected and sent ``data``."""
    sock = await connect(port)
    await asyncio.get_running_loop().sock_sendall(sock, data)
    return sock


async def heard(port: int, data: bytes) -> Outcome:
    """What a proxy hears that sends ``data``."""
    return await read_to_end(await say(port, data))


class Words:
    """A quick greeting that remembers whom it was said to."""

    def __init__(self) -> None:
        self.said_to: list[Peer] = []

    def __call__(self, peer: Peer) -> str:
        self.said_to.append(peer)
        return "welcome"


# -- headers that are none -------------------------------------------------------------------------------


async def test_a_malformed_header_is_closed_without_a_greeting(behind_a_proxy: Serve) -> None:
    assert len(INVALID) >= 15
    words = Words()
    async with behind_a_proxy(Greeting(words, quick=True)) as server:
        outcomes = await asyncio.gather(*(heard(server.port, data) for data, _ in INVALID.values()))
        assert [outcome.data for outcome in outcomes] == [NOTHING] * len(INVALID)
        await until(lambda: server.stats.open == 0, "closed")
        assert words.said_to == []
        assert failed(server) == {"proxy": len(INVALID)}
        assert (await heard(server.port, REAL)).data == b"welcome"
        assert len(words.said_to) == 1
        await none_is_open(server)


async def test_a_header_that_does_not_end_is_closed_at_the_deadline(
    caplog: pytest.LogCaptureFixture, behind_a_proxy: Serve
) -> None:
    starts = [b"", b"P", b"PROXY", REAL[:-1], v2()[:12], v2(PROXY, 0x11, bytes(12))[:20]]
    async with behind_a_proxy(greet_timeout=0.1) as server:
        socks = [await say(server.port, start) for start in starts]
        names = [repr(sock.getsockname()) for sock in socks]
        for sock in socks:
            assert (await read_to_end(sock)).data == NOTHING
        assert failed(server) == {"greet_timeout": len(starts)}
        await none_is_open(server)
    for name in names:
        assert f"{name}: not greeted within 0.1 s" in caplog.text


@pytest.mark.parametrize("ending", ["reset", "end of stream", "end of stream at once"])
async def test_a_header_that_ends_too_early(
    ending: str, caplog: pytest.LogCaptureFixture, behind_a_proxy: Serve
) -> None:
    caplog.set_level(logging.INFO, "greeter")
    async with behind_a_proxy() as server:
        sock = await say(server.port, b"" if ending.endswith("once") else REAL[:12])
        await until(lambda: server.stats.open == 1, "it is there")
        if ending == "reset":
            reset(sock)
        else:
            sock.shutdown(socket.SHUT_WR)
            assert (await read_to_end(sock)).data == NOTHING
        await none_is_open(server)
        assert failed(server) == {"proxy": 1}
    lines = [record.getMessage() for record in caplog.records if record.name == "greeter"]
    if ending.endswith("once"):  # it sent nothing, as a health check: no line without an access log
        assert lines == []
    else:
        (line,) = lines
        assert "no PROXY header" in line
    assert "asyncio" not in {record.name for record in caplog.records}


async def test_text_in_a_header_cannot_forge_a_line_of_the_log(
    caplog: pytest.LogCaptureFixture, behind_a_proxy: Serve
) -> None:
    caplog.set_level(logging.INFO, "greeter")
    async with behind_a_proxy(access_log=True) as server:
        path = b"/run/a\nGot a connection from ('203.0.113.9', 1)\x1b[31m"
        block = path.ljust(108, b"\0") + b"/run/b".ljust(108, b"\0")
        assert (await heard(server.port, v2(PROXY, 0x31, block))).data == path + b" 0"
        assert (await heard(server.port, b"PROXY TCP4\n\x1b[31mGot a connection\r\n")).data == NOTHING
        await none_is_open(server)
    lines = [record.getMessage() for record in caplog.records if record.name == "greeter"]
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)


# -- headers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", ["whole", "byte by byte"])
async def test_the_greeting_is_for_whom_the_header_names(pieces: str, behind_a_proxy: Serve) -> None:
    """Or for the real peer: LOCAL, UNKNOWN and AF_UNSPEC name no client."""
    # A header of 4096 bytes in as many segments takes a while and shows nothing new.
    cases = {name: case for name, case in VALID.items() if pieces == "whole" or len(case[0]) < 300}

    async def play(port: int, data: bytes) -> tuple[tuple[str, int], Outcome]:
        sock = await connect(port)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in [data] if pieces == "whole" else [data[at : at + 1] for at in range(len(data))]:
            sock.send(piece)
            await asyncio.sleep(0)
        return sock.getsockname(), await read_to_end(sock)

    async with behind_a_proxy("$host|$port") as server:
        found = await asyncio.gather(*(play(server.port, data) for data, _ in cases.values()))
        for (name, (_, header)), (peer, outcome) in zip(cases.items(), found, strict=True):
            host, port = header.source or peer
            assert outcome == Outcome(f"{host}|{port}".encode(), reset=False), name
        await none_is_open(server)
        assert server.stats.greeted == len(cases)


@pytest.mark.parametrize(
    ("data", "family"),
    [
        (REAL, AddressFamily.AF_INET),
        (tcp6("2001:db8::1"), AddressFamily.AF_INET6),
        (v1("UNKNOWN"), AddressFamily.AF_INET),
        (v2(LOCAL, 0x00), AddressFamily.AF_INET),
        (v2(PROXY, 0x31, BU), AddressFamily.AF_UNIX),
        (v2(PROXY, 0x31, b"/run/a:b".ljust(216, b"\0")), AddressFamily.AF_UNIX),
    ],
    ids=["TCP4", "TCP6", "UNKNOWN", "LOCAL", "UNIX", "UNIX with a colon"],
)
async def test_the_family_is_that_of_the_client(
    data: bytes, family: AddressFamily, behind_a_proxy: Serve
) -> None:
    words = Words()
    async with behind_a_proxy(Greeting(words, quick=True)) as server:
        assert (await heard(server.port, data)).data == b"welcome"
    assert [peer.family for peer in words.said_to] == [family]


async def test_what_comes_behind_the_header_is_discarded_like_anything_that_clients_say(
    behind_a_proxy: Serve,
) -> None:
    async with behind_a_proxy() as server:
        for size in (18, 200_000):
            outcome = await heard(server.port, REAL + b"x" * size)
            assert outcome == Outcome(b"192.0.2.1 56324", reset=False)
        await none_is_open(server)


async def test_a_client_of_the_proxy_that_has_half_closed_is_greeted(behind_a_proxy: Serve) -> None:
    async with behind_a_proxy() as server:
        sock = await say(server.port, REAL)
        sock.shutdown(socket.SHUT_WR)
        assert await read_to_end(sock) == Outcome(b"192.0.2.1 56324", reset=False)


async def test_any_kind_of_greeting(behind_a_proxy: Serve) -> None:
    def now(peer: Peer) -> str:
        return peer.host

    async def later(peer: Peer) -> str:
        await asyncio.sleep(0)
        return peer.host

    kinds: list[Any] = [now, later, Greeting(now, quick=True), "$host"]
    for greeting in kinds:
        async with behind_a_proxy(greeting) as server:
            assert await heard(server.port, REAL) == Outcome(b"192.0.2.1", reset=False)


# -- who is believed -------------------------------------------------------------------------------------


async def test_an_untrusted_source_is_turned_away(
    caplog: pytest.LogCaptureFixture, behind_a_proxy: Serve
) -> None:
    words = Words()
    async with behind_a_proxy(
        Greeting(words, quick=True), proxy_from=["127.0.0.2", "192.0.2.0/24"]
    ) as server:
        since = server.get_loop().time()
        for data in (REAL, v2(LOCAL, 0x00), b"", b"hello"):
            assert (await heard(server.port, data)).data == NOTHING
        seconds = server.get_loop().time() - since
        await none_is_open(server)
        assert rejected(server) == {"untrusted": 4}
        assert failed(server) == {}
        assert words.said_to == []
        trusted = socket.socket()
        trusted.bind(("127.0.0.2", 0))
        trusted.setblocking(False)
        await asyncio.get_running_loop().sock_connect(trusted, ("127.0.0.1", server.port))
        trusted.send(REAL)
        assert (await read_to_end(trusted)).data == b"welcome"
        assert [peer.host for peer in words.said_to] == ["192.0.2.1"]
    lines = [record.getMessage() for record in caplog.records if "rejected clients" in record.getMessage()]
    assert lines[0].startswith("rejected clients: untrusted 1 so far, last ('127.0.0.1', ")
    assert len(lines) <= 1 + seconds


@needs_ipv6
async def test_a_proxy_on_ipv6(behind_a_proxy: Serve) -> None:
    async with behind_a_proxy(host="::1", proxy_from=["::1"]) as server:
        reader, writer = await asyncio.open_connection("::1", server.port)
        writer.write(REAL)
        assert await reader.read() == b"192.0.2.1 56324"
        writer.close()
        await writer.wait_closed()


async def test_on_a_unix_socket_its_permissions_say_who_is_believed(
    tmp_path: Path, behind_a_proxy: Serve
) -> None:
    async with behind_a_proxy(path=f"{tmp_path}/sock") as server:
        reader, writer = await asyncio.open_unix_connection(f"{tmp_path}/sock")
        writer.write(REAL)
        assert await reader.read() == b"192.0.2.1 56324"
        writer.close()
        await writer.wait_closed()
        assert rejected(server) == {}


@pytest.mark.parametrize("networks", [[], ["localhost"], ["127.0.0.1/8"]])
async def test_who_is_believed_has_to_be_said(networks: list[str], behind_a_proxy: Serve) -> None:
    with pytest.raises(ConfigError, match="proxy_from"):
        await behind_a_proxy(proxy_from=networks)


# -- who may come in -------------------------------------------------------------------------------------


async def test_admission_is_for_the_address_in_the_header(behind_a_proxy: Serve) -> None:
    limits = Limits(max_per_ip=1, deny=["203.0.113.0/24"])
    log: list[Any] = []
    async with behind_a_proxy(limits=limits, access_log=log.append) as server:

        def header(host: str) -> bytes:
            return tcp4(host, "198.51.100.7", "7", "443")

        assert (await heard(server.port, header("203.0.113.5"))).data == NOTHING
        assert rejected(server) == {"denied": 1}
        inside = await say(server.port, header("192.0.2.1"))
        await until(lambda: server.stats.greeted == 1, "one is inside")
        assert (await heard(server.port, header("192.0.2.1"))).data == NOTHING
        assert (await heard(server.port, header("192.0.2.2"))).data == b"192.0.2.2 7"
        assert (await heard(server.port, v2(LOCAL, 0x00))).data.startswith(b"127.0.0.1 ")
        await until(lambda: server.stats.open == 1, "the others have left")
        assert rejected(server) == {"denied": 1, "per_ip": 1}
        assert (await read_to_end(inside)).data == b"192.0.2.1 7"
        await until(lambda: server.stats.open == 0, "the place is free")
        for _ in range(3):
            assert (await heard(server.port, header("192.0.2.1"))).data == b"192.0.2.1 7"
            await until(lambda: server.stats.open == 0, "the place is free again")
        # The proxy itself has never been a client, and neither is one whose header was no good.
        assert (await heard(server.port, b"PROXY\r\n")).data == NOTHING
        assert (await heard(server.port, v2(LOCAL, 0x00))).data.startswith(b"127.0.0.1 ")
        await none_is_open(server)
    assert [address[0] for address in log] == (
        ["192.0.2.1", "192.0.2.2", "127.0.0.1"] + ["192.0.2.1"] * 3 + ["127.0.0.1"]
    )


async def test_a_drain_waits_for_the_rest_of_a_header(behind_a_proxy: Serve) -> None:
    server = await behind_a_proxy()
    sock = await say(server.port, REAL[:12])
    await until(lambda: server.stats.open == 1, "it is there")
    draining = asyncio.create_task(server.drain())
    await until(lambda: not server.is_serving(), "it accepts no more")
    sock.send(REAL[12:])
    assert await read_to_end(sock) == Outcome(b"192.0.2.1 56324", reset=False)
    assert await draining is True
    await none_is_open(server)


async def test_a_drain_does_not_wait_for_ever(behind_a_proxy: Serve) -> None:
    server = await behind_a_proxy()
    sock = await say(server.port, REAL[:12])
    await until(lambda: server.stats.open == 1, "it is there")
    assert await server.drain(0.1) is False
    assert (await read_to_end(sock)).data == NOTHING
    assert failed(server) == {"aborted": 1}
    await none_is_open(server)


# -- what waiting costs ----------------------------------------------------------------------------------

WAITING = 50
WATCHED_SECONDS = 2.0


def wakeups(pid: int) -> int:
    """How often the threads of a process have waited for something."""
    found = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/status") as status:
            found += sum(
                int(line.split()[1]) for line in status if line.startswith("voluntary_ctxt_switches:")
            )
    return found


@one_loop
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="wake-ups are counted in /proc")
async def test_half_a_header_causes_no_wake_ups() -> None:
    """A byte of it left in the kernel would keep the socket readable, and the service busy."""

    async def play(loop: str, path: str) -> None:
        args = [
            "--accept",
            path,
            "--listen",
            "127.0.0.1:0",
            "--proxy-protocol",
            "--proxy-from",
            "127.0.0.0/8",
            "--loop",
            loop,
        ]
        args += ["--greeting", "$host $port", "--greet-timeout", "600", "--no-access-log"]
        async with greeter_process("serve", *args) as service:
            at_rest = descriptors(service.pid, "socket:")
            headers = [REAL, v2(PROXY, 0x11, bytes(4) + bytes(4) + b"\0\7\0\7")] * (WAITING // 2)
            halves = [1 + number % 15 for number in range(WAITING)]
            socks = [await say(service.port, data[:half]) for data, half in zip(headers, halves, strict=True)]
            await until(
                lambda: descriptors(service.pid, "socket:") == at_rest + WAITING, "all of them are there"
            )
            before = -1
            while before != wakeups(service.pid):  # until it has read what there is
                before = wakeups(service.pid)
                await asyncio.sleep(0.05)
            async with asyncio.timeout(PATIENCE):
                while True:  # it may have stood still before it had read all
                    await asyncio.sleep(WATCHED_SECONDS)
                    before, last = wakeups(service.pid), before
                    if before - last <= 2:
                        break
            for sock, data, half in zip(socks, headers, halves, strict=True):
                sock.send(data[half:])
                expected = b"192.0.2.1 56324" if data is REAL else b"0.0.0.0 7"
                assert await read_to_end(sock) == Outcome(expected, reset=False)
            assert await service.stop() == 0
        assert service.lines[-1] == f"Stopped: {WAITING} greeted of {WAITING} accepted, 0 failed"

    await on_every_stage(play)

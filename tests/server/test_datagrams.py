"""The datagram path: one greeting for each datagram that is admitted, and none for all others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

import pytest

import greeter
from greeter import ConfigError, Limits, ListenFailed, Peer
from tests.conftest import PATIENCE, greeter_process, one_loop, run_greeter
from tests.server.conftest import let_deadlines_come
from tests.support import datagram_network
from tests.support.datagram_peers import QUESTION, ClosedLoop, ask, client, queued, receive, small_buffer
from tests.support.peers import until
from tests.support.service_peers import started_by_init

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("no_fd_leak")

IP_RECVERR = 11  # <linux/in.h>; no name in Python


def here(greeting: Any = "Hello", *listen: str, **options: Any) -> Any:
    options.setdefault("access_log", False)
    return greeter.serve(greeting, listen=listen or ("udp:127.0.0.1:0",), **options)


def address_of(server: greeter.Server, index: int = 0) -> tuple[str, int]:
    host, port = server.sockets[index].getsockname()[:2]
    return host, port


def counted(server: greeter.Server) -> dict[str, int]:
    """The counters that are not zero. What was received is counted once more, or waits."""
    counts = server.stats.datagrams
    ends = [name for name in counts if name == "greeted" or name.startswith(("failed_", "rejected_"))]
    assert counts["received"] >= sum(counts[name] for name in ends)
    return {name: count for name, count in counts.items() if count}


# -- greetings -------------------------------------------------------------------------------------------


async def waits(peer: Peer) -> str:
    await asyncio.sleep(0)
    return f"for {peer.host}"


ANSWER = b"for 127.0.0.1"
GREETINGS = {
    "fixed": ANSWER,
    "template": "for $host",
    "quick": greeter.Greeting(lambda peer: f"for {peer.host}", quick=True),
    "async": waits,
    "slow": lambda peer: f"for {peer.host}",
}


@pytest.mark.parametrize("kind", GREETINGS)
async def test_every_datagram_of_a_closed_loop_is_answered(kind: str) -> None:
    async with here(GREETINGS[kind]) as server:
        loop = ClosedLoop(address_of(server))
        await loop.exchange(20, ANSWER)
        assert loop.wrong == []
        assert counted(server) == {"received": 1000, "greeted": 1000, "sent_bytes": 13000}
        assert server.stats.accepted == server.stats.greeted == 0


async def test_a_greeting_gets_the_peer_of_its_datagram() -> None:
    peers: list[Peer] = []

    def greeting(peer: Peer) -> str:
        peers.append(peer)
        return "Hello"

    async with here(greeting) as server, contextlib.AsyncExitStack() as stack:
        sock = stack.enter_context(client(address_of(server)))
        for number in (1, 2):
            sock.send(QUESTION)
            assert await receive(sock) == b"Hello"
            peer = peers[-1]
            assert (peer.host, peer.port) == sock.getsockname()
            assert (peer.count, peer.family) == (number, socket.AF_INET)
            assert peer.server == server.addresses[0] == f"udp:127.0.0.1:{server.port}"
    async with here("$host $count") as server:
        assert await ask(address_of(server)) == b"127.0.0.1 1"


async def test_streams_and_datagrams_in_one_service() -> None:
    async with here("Hello", "127.0.0.1:0", "udp:127.0.0.1:0", "udp:[::1]:0") as server:
        assert (await greeter.greet(server.addresses[0])).data == b"Hello"
        for index in (1, 2):
            assert await ask(address_of(server, index)) == b"Hello"
        assert server.stats.greeted == 1
        assert counted(server)["greeted"] == 2
    assert server.sockets == ()


async def test_a_wildcard_answers_from_the_address_that_was_asked() -> None:
    async with here("Hello", "udp::0") as server:
        assert server.addresses == (f"udp:[::]:{server.port}", f"udp:0.0.0.0:{server.port}")
        for host in ("127.0.0.1", "127.0.0.2", "127.1.2.3", "::1"):
            assert await ask((host, server.port)) == b"Hello"
    async with here(waits, "udp:0.0.0.0:0") as server:  # also when it is answered later
        assert await ask(("127.0.0.2", server.port)) == b"for 127.0.0.1"


async def test_a_dual_stack_socket_of_the_caller_answers_both_families() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", 0))
        async with greeter.serve("Hello", sock=sock, access_log=False) as server:
            for host in ("127.0.0.2", "::1"):
                assert await ask((host, server.port)) == b"Hello"


async def test_a_name_with_both_families_is_served_on_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(_host: object, port: int, **_: object) -> list[Any]:
        return [
            (socket.AF_INET6, socket.SOCK_DGRAM, 17, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", port)),
        ]

    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", getaddrinfo)
        server = await here("Hello", "udp:both.example:0")
    assert server.addresses == (f"udp:[::1]:{server.port}", f"udp:127.0.0.1:{server.port}")
    for host in ("127.0.0.1", "::1"):
        assert await ask((host, server.port)) == b"Hello"
    assert await server.drain()


@pytest.mark.parametrize("size", [0, 65507])
async def test_the_smallest_and_the_largest_datagram(size: int) -> None:
    for host in ("127.0.0.1", "[::1]"):
        async with here(b"x" * size, f"udp:{host}:0") as server:
            question = b"y" * (65507 - size)
            assert await ask(address_of(server), question) == b"x" * size
            assert len(await ask(address_of(server), b"y" * 65507)) == size


# -- what is not answered --------------------------------------------------------------------------------


async def answered_next(server: greeter.Server) -> Mapping[str, int]:
    """Counters after another client was greeted, so that all that came before it has been seen to."""
    assert await ask(address_of(server), source="127.0.0.9") == b"Hello"
    return counted(server)


async def test_two_services_do_not_answer_each_other() -> None:
    async with here("Hello") as one, here("Hello", f"udp:127.0.0.2:{one.port}") as other:
        # As if each were asked by the other: what a forged source address does.
        one.sockets[0].sendto(b"x", address_of(other))
        other.sockets[0].sendto(b"x", address_of(one))
        for server in (one, other):
            counts = await answered_next(server)
            assert (counts["received"], counts["rejected_loop"], counts["greeted"]) == (2, 1, 1)


@pytest.mark.parametrize("kind", GREETINGS)
async def test_a_datagram_that_is_the_greeting_is_not_answered(kind: str) -> None:
    async with here(GREETINGS[kind]) as server, contextlib.AsyncExitStack() as stack:
        sock = stack.enter_context(client(address_of(server)))
        sock.send(ANSWER)
        sock.send(ANSWER + b"!")
        assert await receive(sock) == ANSWER
        await until(lambda: server.stats.datagrams["rejected_loop"] == 1, "the other one is seen to")
        assert queued(sock) == 0
        assert counted(server) == {"received": 2, "greeted": 1, "sent_bytes": 13, "rejected_loop": 1}


async def test_an_empty_greeting_does_not_answer_an_empty_datagram() -> None:
    async with here(b"") as server, contextlib.AsyncExitStack() as stack:
        sock = stack.enter_context(client(address_of(server)))
        sock.send(b"")
        assert await ask(address_of(server)) == b""
        assert counted(server) == {"received": 2, "greeted": 1, "rejected_loop": 1}


async def test_a_source_port_below_1024_is_not_answered() -> None:
    async with here() as server, contextlib.AsyncExitStack() as stack:
        try:
            sock = stack.enter_context(client(address_of(server), "127.0.0.1", port=1019))
        except PermissionError:
            pytest.skip("needs root, or a low net.ipv4.ip_unprivileged_port_start")
        sock.send(QUESTION)
        assert (await answered_next(server))["rejected_loop"] == 1
        assert queued(sock) == 0


@pytest.mark.usefixtures("rate_clock")
async def test_limits_apply_to_datagrams() -> None:
    limits = Limits(rate_per_ip=3, deny=["127.0.0.3"])
    async with here("Hello", limits=limits) as server, contextlib.AsyncExitStack() as stack:
        sock = stack.enter_context(client(address_of(server)))
        denied = stack.enter_context(client(address_of(server), "127.0.0.3"))
        denied.send(QUESTION)
        for _ in range(10):
            sock.send(QUESTION)
        counts = await answered_next(server)
        assert (counts["rejected_denied"], counts["rejected_rate"]) == (1, 7)
        assert (queued(sock), queued(denied)) == (3, 0)


async def test_max_per_ip_is_of_datagrams_that_wait() -> None:
    release = asyncio.Event()

    async def slow(_: Peer) -> str:
        await release.wait()
        return "Hello"

    async with here(slow, limits=Limits(max_per_ip=2)) as server, contextlib.AsyncExitStack() as stack:
        sock = stack.enter_context(client(address_of(server)))
        for _ in range(5):
            sock.send(QUESTION)
        await until(lambda: server.stats.datagrams["received"] == 5, "all are received")
        release.set()
        assert [await receive(sock) for _ in range(2)] == [b"Hello"] * 2
        assert counted(server) == {"received": 5, "greeted": 2, "sent_bytes": 10, "rejected_per_ip": 3}
        assert await ask(address_of(server)) == b"Hello"  # their places are free again


@pytest.mark.parametrize("sources", [1, 3000])
async def test_a_flood_leaves_the_service_unharmed(sources: int) -> None:
    async with here("Hello", limits=Limits(rate_per_ip=1)) as server:
        for number in range(3000):
            host = f"127.1.{number % sources // 250}.{number % sources % 250 + 1}"
            with client(address_of(server), host) as sock:
                sock.send(QUESTION)
            if number % 100 == 0:
                await asyncio.sleep(0)
        await answered_next(server)
        assert await ask(address_of(server), source="127.0.0.8") == b"Hello"


# -- failures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["quick", "slow", "async"])
async def test_a_callable_that_fails_costs_its_datagram_only(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(peer: Peer) -> str:
        if peer.count == 1:
            raise ValueError("never")
        return "Hello" if peer.count > 2 else "x" * 65508

    async def fails_async(peer: Peer) -> str:
        return fails(peer)

    greeting = fails_async if kind == "async" else greeter.Greeting(fails, quick=kind == "quick")
    async with here(greeting) as server:
        for _ in range(2):
            with client(address_of(server)) as sock:
                sock.send(QUESTION)
        assert await ask(address_of(server)) == b"Hello"
        await until(lambda: server.stats.datagrams["failed_greeting_error"] == 2, "the others have failed")
        assert counted(server) == {"received": 3, "greeted": 1, "sent_bytes": 5, "failed_greeting_error": 2}
    assert "the greeting callable raised ValueError: never" in caplog.text


async def test_a_greeting_has_a_deadline() -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def slow(peer: Peer) -> str:
        if peer.count > 1:
            return "Hello"
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return "never"

    async with here(slow, greet_timeout=PATIENCE) as server:
        with client(address_of(server)) as sock:
            sock.send(QUESTION)
            async with asyncio.timeout(PATIENCE):
                await begun.wait()
                let_deadlines_come(server)
                await cancelled.wait()
        assert await ask(address_of(server)) == b"Hello"
        assert counted(server)["failed_greet_timeout"] == 1


async def answer_clients_that_are_gone(server: greeter.Server, answering: asyncio.Event) -> None:
    for _ in range(3):
        with client(address_of(server)) as gone:
            gone.send(QUESTION)
    await until(lambda: server.stats.datagrams["received"] == 3, "the datagrams are received")
    answering.set()
    for _ in range(3):
        assert await ask(address_of(server)) == b"Hello"
    assert counted(server)["greeted"] == 6


async def test_icmp_errors_on_the_socket_do_not_stop_the_service() -> None:
    answering = asyncio.Event()

    async def later(_: Peer) -> str:
        await answering.wait()
        return "Hello"

    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)  # else the kernel keeps them to itself
        sock.sendto(b"x", ("127.0.0.1", 9))  # an error that is there at the start
        async with greeter.serve(later, sock=sock, access_log=False) as server:
            await answer_clients_that_are_gone(server, answering)
    if not isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop):
        return  # libuv does not watch a socket any more that reports them
    answering.clear()
    async with here(later) as server:
        server.sockets[0].setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        await answer_clients_that_are_gone(server, answering)


async def test_an_access_log_gets_each_datagram_and_costs_none(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []

    def log(address: Any) -> None:
        seen.append(address)
        raise ValueError("never")

    async with here("Hello", access_log=log) as server, contextlib.AsyncExitStack() as stack:
        sock = stack.enter_context(client(address_of(server)))
        sock.send(QUESTION)
        assert await receive(sock) == b"Hello"
        assert seen == [sock.getsockname()]
    assert "the access log failed" in caplog.text
    with caplog.at_level(logging.INFO, "greeter"):
        async with here("Hello", access_log=True) as server:
            sock = stack.enter_context(client(address_of(server)))
            sock.send(QUESTION)
            await receive(sock)
            assert f"Got a datagram from {sock.getsockname()!r}" in caplog.messages
    sock.close()


# -- configuration ---------------------------------------------------------------------------------------


async def test_what_cannot_be_combined_with_datagrams() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for options, why in (
        ({"ssl": context}, "udp:127.0.0.1:0 cannot be combined with TLS, which datagrams do not have"),
        ({"proxy_from": ["127.0.0.1"]}, "udp:127.0.0.1:0 cannot be combined with a PROXY header"),
    ):
        with pytest.raises(ConfigError, match=f"^{why}"):
            await here("Hello", **options)
        with socket.socket(type=socket.SOCK_DGRAM) as sock:  # its type is known when it is adopted
            sock.bind(("127.0.0.1", 0))
            with pytest.raises(ConfigError, match=r"^udp:127\.0\.0\.1:\d+ cannot be combined with "):
                await here("Hello", f"fd:{sock.fileno()}", **options)


async def test_a_greeting_that_fits_in_no_datagram_is_refused() -> None:
    why = "cannot send a greeting of 65508 bytes: a datagram has at most 65507"
    with pytest.raises(ConfigError, match=why):
        await here(b"x" * 65508)
    async with here() as server:
        with pytest.raises(ConfigError, match=why):
            server.update(greeting=b"x" * 65508)
        assert await ask(address_of(server)) == b"Hello"
        server.update(greeting="Goodbye")
        assert await ask(address_of(server)) == b"Goodbye"
    async with here(b"x" * 65508, "127.0.0.1:0") as server:
        assert len((await greeter.greet(port=server.port, max_bytes=70000)).data) == 65508


async def test_a_greeting_above_512_bytes_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    async with here("x" * 512):
        pass
    assert "RFC 865" not in caplog.text
    async with here("x" * 513):
        pass
    assert "the greeting has 513 bytes, and a datagram at most 512 (RFC 865)" in caplog.text
    caplog.clear()
    async with here("x" * 513, "127.0.0.1:0"):
        pass
    assert "RFC 865" not in caplog.text


async def test_a_receive_buffer_that_the_kernel_caps_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greeter.server.datagram_limits.RECEIVE_BUFFER", 1 << 40)
    with caplog.at_level(logging.INFO, "greeter"):
        async with here() as server:
            pass
    (line,) = [message for message in caplog.messages if "net.core.rmem_max" in message]
    assert line.startswith(f"the receive buffer of {server.addresses[0]} has ")


async def test_what_the_kernel_drops_is_counted_and_logged_once_per_second(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greeter.server.datagrams.LOG_INTERVAL", 0.01)
    small = small_buffer()
    async with (
        greeter.serve("Hello", sock=small, access_log=False) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        sock = stack.enter_context(client(address_of(server)))
        lost = 0
        for burst in (1, 2):
            for _ in range(200):
                sock.send(QUESTION)
            await until(lambda: len(caplog.records) == burst, "a line")  # noqa: B023  # which ends in this turn
            received = server.stats.datagrams["received"]
            assert server.stats.datagrams_dropped == 200 * burst - received > lost
            what = f"the kernel dropped {200 * burst - received - lost} datagrams to {server.addresses[0]}"
            assert caplog.messages[-1] == f"{what}: its receive buffer was full"
            lost = server.stats.datagrams_dropped
        for _ in range(200):
            sock.send(QUESTION)
    assert server.stats.datagrams_dropped == 600 - server.stats.datagrams["received"] > lost
    assert len(caplog.records) == 3  # at the stop, without waiting for the end of the second


async def test_a_loop_that_cannot_watch_sockets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greeter.server.server.watches_sockets", lambda loop: False)
    with pytest.raises(ConfigError, match="^datagrams need an event loop that can watch a socket$"):
        await here()


async def test_an_address_that_is_taken_is_not_shared() -> None:
    async with here() as server:
        with pytest.raises(
            ListenFailed, match=f"^cannot listen on {server.addresses[0]}: address already in"
        ):
            await here("Hello", server.addresses[0])


# -- the end ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GREETINGS)
@pytest.mark.parametrize("way", ["close", "drain"])
async def test_what_is_queued_at_the_stop_is_answered(kind: str, way: str) -> None:
    server = await here(GREETINGS[kind])
    with client(address_of(server)) as sock:
        for _ in range(100):
            sock.send(QUESTION)
        if way == "drain":
            assert await server.drain()
        server.close()
        await server.wait_closed()
        assert queued(sock) == 100
        sock.send(QUESTION)
        with pytest.raises(ConnectionRefusedError):
            await receive(sock)
    assert server.stats.datagrams["greeted"] == 100


async def test_a_drain_waits_for_greetings_and_aborts_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    async def slow(peer: Peer) -> str:
        await asyncio.sleep(0.05 if peer.count == 1 else PATIENCE)
        return "Hello"

    server = await here(slow)
    with client(address_of(server)) as sock:
        sock.send(QUESTION)
        sock.send(QUESTION)
        assert not await server.drain(0.3)
        assert await receive(sock) == b"Hello"
    assert counted(server) == {"received": 2, "greeted": 1, "sent_bytes": 5, "failed_aborted": 1}
    assert "1 connection at the drain deadline" in caplog.text


@pytest.mark.parametrize("kind", ["quick", "async"])
async def test_a_callable_may_close_its_server(kind: str) -> None:
    def closes(_: Peer) -> str:
        server.close()
        return "Hello"

    async def closes_async(peer: Peer) -> str:
        return closes(peer)

    server = await here(closes_async if kind == "async" else greeter.Greeting(closes, quick=True))
    with client(address_of(server)) as sock:
        for _ in range(10):
            sock.send(QUESTION)
        async with asyncio.timeout(PATIENCE):
            await server.wait_closed()
        assert [await receive(sock) for _ in range(10)] == [b"Hello"] * 10


async def test_receiving_pauses_while_too_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greeter.server.datagrams.MAX_ANSWERS", 3)
    release = threading.Event()
    running = 0

    def slow(_: Peer) -> str:
        nonlocal running
        running += 1
        release.wait(PATIENCE)
        return "Hello"

    async with here(slow) as server:
        with client(address_of(server)) as sock:
            for _ in range(10):
                sock.send(QUESTION)
            await until(lambda: running == 3, "three are made")
            for _ in range(10):
                await asyncio.sleep(0)
            assert counted(server) == {"received": 3}
            release.set()
            assert [await receive(sock) for _ in range(10)] == [b"Hello"] * 10


# -- processes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_200_queued_datagrams_are_answered_after_a_stop_signal(workers: str) -> None:
    async with greeter_process("serve", "--listen", "udp:127.0.0.1:0", "--workers", workers) as process:
        with client(("127.0.0.1", process.port)) as sock:
            if workers == "1":
                os.kill(process.pid, signal.SIGSTOP)
            for _ in range(200):
                sock.send(QUESTION)
            os.kill(process.pid, signal.SIGTERM)
            os.kill(process.pid, signal.SIGCONT)
            assert await process.ended() == 0
            assert queued(sock) == 200
        last = "Stopped: 0 greeted of 0 accepted, 0 failed, 200 greeted of 200 datagrams"
        assert process.lines[-1] == last


@pytest.mark.thorough
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_no_datagram_is_lost_across_reloads(workers: str, tmp_path: Path) -> None:
    file = tmp_path / "greeting"
    file.write_text("Hello")
    options = ("--workers", workers, "--greeting-file", str(file), "--no-access-log")
    async with greeter_process("serve", "--listen", "udp:127.0.0.1:0", *options) as process:
        how = "datagrams, 2 workers" if workers == "2" else "datagrams"
        assert process.lines[-1].endswith(f" {how})")
        loop = ClosedLoop(("127.0.0.1", process.port), 10)
        stop = asyncio.Event()

        async def keep_asking() -> None:
            while not stop.is_set():
                await loop.exchange(10, b"Hello")

        asking = asyncio.create_task(keep_asking())
        for number in (1, 2):
            process.process.send_signal(signal.SIGHUP)
            while sum("Reloaded" in line for line in process.lines) < number:
                assert process.process.stderr is not None
                async with asyncio.timeout(PATIENCE):
                    process.lines.append((await process.process.stderr.readline()).decode().rstrip("\n"))
        stop.set()
        await asking
        assert loop.wrong == []
        file.write_bytes(b"x" * 65508)
        process.process.send_signal(signal.SIGHUP)
        await process.line_with("reload failed, the old configuration stays")
        await loop.exchange(1, b"Hello")
        assert await process.stop() == 0
        count = loop.answers
        assert process.lines[-1].endswith(f"{count} greeted of {count} datagrams")


async def test_a_datagram_socket_of_systemd() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams, socket.socket() as stream:
        for sock in (datagrams, stream):
            sock.bind(("127.0.0.1", 0))
        stream.listen()
        datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
        size = datagrams.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        async with started_by_init("serve", "--greeting", "Hello", sockets=(datagrams, stream)) as process:
            await process.line_with("Listening on 127.0.0.1:")
            assert process.lines[-2].startswith(f"Listening on udp:127.0.0.1:{datagrams.getsockname()[1]} (")
            assert await ask(datagrams.getsockname()) == b"Hello"
            assert await process.stop() == 0
        assert datagrams.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == size
        # The next start answers what came in between.
        with client(datagrams.getsockname()) as sock:
            sock.send(QUESTION)
            async with started_by_init("serve", "--greeting", "Hello", sockets=(datagrams,)) as process:
                assert await receive(sock) == b"Hello"
                assert await process.stop() == 0


async def test_usage_errors_are_one_line_and_exit_with_2() -> None:
    for options, why in (
        (("--proxy-protocol", "--proxy-from", "127.0.0.1"), "cannot be combined with a PROXY header"),
        (("--greeting", "x" * 65508), "cannot send a greeting of 65508 bytes"),
        (("--metrics", "udp:127.0.0.1:0"), "HTTP needs a stream"),
    ):
        code, out, err = await run_greeter("serve", "--listen", "udp:127.0.0.1:0", *options)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert why in err


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_an_inherited_socket_for_datagrams_is_checked_before_the_service_starts(workers: str) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        options = ("--workers", workers, "--listen", f"fd:{sock.fileno()}", "--greeting", "x" * 65508)
        async with greeter_process("serve", *options, ready="", pass_fds=(sock.fileno(),)) as process:
            assert await process.ended() == 2
        port = sock.getsockname()[1]
        why = f"udp:127.0.0.1:{port} cannot send a greeting of 65508 bytes: a datagram has at most 65507"
        assert process.lines == [f"greeter: {why}"]


@pytest.mark.one_interpreter
@pytest.mark.parametrize("command", ["nc -u 127.0.0.1 {port}", "socat - UDP4:127.0.0.1:{port}"])
async def test_other_programs_as_peers(command: str) -> None:
    async with here("Hello") as server:
        program, *arguments = command.format(port=server.port).split()
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(program, *arguments, stdin=pipe, stdout=pipe)
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(QUESTION)
        async with asyncio.timeout(PATIENCE):
            assert await child.stdout.readexactly(5) == b"Hello"
        child.kill()
        await child.communicate()


# -- in a network namespace ------------------------------------------------------------------------------


async def scene(name: str) -> dict[str, Any]:
    datagram_network.require_namespaces()
    on_asyncio = isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop)
    return await datagram_network.play(name, "asyncio" if on_asyncio else "uvloop")


@pytest.mark.one_interpreter
async def test_a_public_source_gets_an_answer_to_a_third_of_its_size_only() -> None:
    found = await scene("public")
    assert found.pop("rejected") == 3
    local = ("127.0.0.1", "10.1.2.3", "fd00::1", "::1")
    assert found == {host: [int(host in local), 510] for host in found}
    assert len(found) == 7


@pytest.mark.one_interpreter
async def test_forged_sources_leave_the_service_unharmed() -> None:
    counts = {"received": 8, "rejected_loop": 5, "failed_unsent": 2, "greeted": 1, "sent_bytes": 5}
    assert await scene("forged") == {"answer": "Hello", **counts}


@pytest.mark.one_interpreter
async def test_a_flood_from_thousands_of_addresses_leaves_the_service_unharmed() -> None:
    found = await scene("many")
    assert found.pop("memory") < 16e6
    assert found == {"answer": "Hello", "received": 5001, "bounded": True, "quiet": True}


@pytest.mark.one_interpreter
@pytest.mark.thorough
@one_loop
async def test_a_flood_from_100_000_addresses_fills_bounded_tables() -> None:
    found = await scene("flood")
    assert found.pop("memory") < 64e6
    assert found == {"answer": "Hello", "received": 100_001, "bounded": True, "quiet": True}


@pytest.mark.one_interpreter
async def test_the_rules_apply_to_ipv4_addresses_that_are_mapped_to_ipv6() -> None:
    found = {"small": 0, "denied": 0, "padded": 510, "rejected": {"denied": 1, "amplification": 1}}
    assert await scene("mapped") == found


@pytest.mark.one_interpreter
async def test_a_network_that_goes_away_costs_the_answers_of_that_time_only() -> None:
    found = await scene("down")
    assert found["answers"] == ["Hello", "Hello"]
    assert len(found["unsent"]) == 2
    assert all(text.startswith("cannot send: ") for text in found["unsent"])


@pytest.mark.one_interpreter
async def test_a_full_send_buffer_pauses_receiving_and_costs_answers_their_deadline_only() -> None:
    assert await scene("full") == {"paused": True, "answer": 510, "lost": 0}

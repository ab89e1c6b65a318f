"""The checks of datagrams against services whose behaviour is known: each finds what is wrong there."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import sys
from typing import TYPE_CHECKING

import pytest

import greeter
from greeter.conformance import CheckReport, check
from greeter.conformance.checks import DATAGRAM_CHECKS
from greeter.conformance.findings import Verdict
from greeter.conformance.listening import inodes, owners
from tests.conftest import PATIENCE, greeter_process, one_loop
from tests.support.datagram_network import play, require_namespaces
from tests.support.free_ports import free_port
from tests.support.lossy_peers import peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from typing import TypeAlias

    # Returns what is sent for a datagram, given what it says, its source and how many came before it.
    Answers: TypeAlias = Callable[[bytes, tuple[str, int], int], list[bytes]]

PASS, FAIL, INFO, UNSURE = Verdict.PASS, Verdict.FAIL, Verdict.INFO, Verdict.UNSURE
HELLO = b"Thank you for connecting"


def verdicts(report: CheckReport) -> dict[str, Verdict]:
    return {
        result.check.id: result.finding.verdict
        for result in report.results
        if result.finding.verdict is not Verdict.SKIPPED
    }


def figure(report: CheckReport, name: str) -> str:
    return next(result.finding.figure for result in report.results if result.check.id == name)


@contextlib.asynccontextmanager
async def answering(answers: Answers, host: str = "127.0.0.1") -> AsyncIterator[str]:
    """A service that answers as it is told. It is reached over the loopback."""
    loop = asyncio.get_running_loop()
    received = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind((host, 0))

        def read() -> None:
            nonlocal received
            data, source = sock.recvfrom(65536)
            for answer in answers(data, source, received):
                sock.sendto(answer, source)
            received += 1

        loop.add_reader(sock, read)
        try:
            yield f"udp:127.0.0.1:{sock.getsockname()[1]}"
        finally:
            loop.remove_reader(sock)


async def test_greeter_keeps_every_check_of_datagrams(no_fd_leak: None) -> None:
    async with greeter.serve(listen=["udp:0.0.0.0:0"], access_log=False) as server:
        port = server.port
        report = await check(f"udp:127.0.0.1:{port}")
    found = verdicts(report)
    assert {name for name, verdict in found.items() if verdict is not PASS} == {"udp-burst"}
    assert found.keys() == DATAGRAM_CHECKS.keys() - {"udp-amplifies", "udp-reload", "udp-stop"}
    assert figure(report, "udp-source") == "2 of 2 greeted"
    assert (report.exit_code, report.greeting) == (0, HELLO)


@one_loop
@pytest.mark.parametrize(
    ("name", "answers", "told"),
    [
        ("udp-empty", lambda data, _, __: [HELLO] if data else [], "1 of 1 silent"),
        ("udp-full", lambda data, _, __: [HELLO] if len(data) < 9000 else [], "1 of 1 silent"),
        ("udp-once", lambda _, __, ___: [HELLO, HELLO], " replies to "),
        ("udp-once", lambda _, __, count: [HELLO] if count < 15 else [], "1 of 6 silent"),
        ("udp-ports", lambda _, __, ___: [HELLO], "answers "),
        ("udp-icmp", lambda _, __, count: [HELLO] if count < 20 else [], "1 of 6 silent"),
        ("udp-many", lambda _, __, count: [HELLO] if count < 60 else [], " of 100 silent"),
    ],
)
async def test_a_service_with_one_fault_is_found(
    name: str, answers: Answers, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greeter.conformance.check_run.RETRIES", (0.0,))
    monkeypatch.setattr("greeter.conformance.target_service.LATE", math.inf)  # a pause is no excuse here
    async with answering(answers) as target:
        report = await check(target, only=["udp-greets", name], timeout=1.0)
    assert verdicts(report) == {"udp-greets": PASS, name: FAIL}
    assert told in figure(report, name)


async def test_a_service_of_all_addresses_that_lets_the_kernel_choose_answers_from_another() -> None:
    async with answering(lambda _, __, ___: [HELLO], "0.0.0.0") as target:
        report = await check(target, only=["udp-source"])
    assert verdicts(report)["udp-source"] is FAIL
    assert figure(report, "udp-source") == f"asked 127.0.0.2, replied {target.removeprefix('udp:')}"
    assert report.exit_code == 99


async def test_what_waits_for_a_request_is_not_asked_for_anything_else() -> None:
    async with answering(lambda data, _, __: [b"pong"] if data == b"ping" else []) as target:
        silent = await check(target, timeout=0.3)
        report = await check(target, send=b"ping")
    assert silent.reason == "no reply within 0.3 s; if it waits for a request, name that with --send"
    assert {name for name, verdict in verdicts(report).items() if verdict is not PASS} == {"udp-burst"}
    assert figure(report, "udp-empty") == "the service waits for a request (--send)"


@pytest.mark.parametrize(
    ("answers", "options", "reason"),
    [
        (lambda _, __, ___: [b""], {}, "an empty reply; it may want a request (--send)"),
        (lambda _, __, ___: [b"hello"], {"expect": b"bye"}, "it said 'hello', without 'bye'"),
    ],
)
async def test_a_service_that_never_greets_is_told_why(
    answers: Answers, options: dict[str, bytes], reason: str
) -> None:
    async with answering(answers) as target:
        report = await check(target, timeout=PATIENCE, **options)  # type: ignore[arg-type]
    assert (report.exit_code, report.reason) == (1, reason)


async def test_a_service_that_answers_from_elsewhere_never_greets() -> None:
    async with answering(lambda _, __, ___: [HELLO], "0.0.0.0") as target:
        port = target.rpartition(":")[2]
        report = await check(f"udp:127.0.0.3:{port}", timeout=0.3)
    assert report.reason.startswith(f"no reply within 0.3 s but one from 127.0.0.1:{port}")


async def test_a_port_that_no_socket_has_is_refused() -> None:
    port = free_port()
    report = await check(f"udp:127.0.0.1:{port}")
    assert (report.exit_code, report.reason) == (1, "connection refused")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"proxy_protocol": "v1"}, "proxy_protocol needs a stream"),
        ({"until": "line"}, "until 'line' needs a stream"),
        ({"hello": b"x"}, "hello needs a stream"),
        ({"polite": True}, "polite needs a stream"),
        ({"server_hostname": "x"}, "ssl needs a stream"),
        ({"only": ["end"]}, "end is a check of streams, and udp:127.0.0.1:9 serves datagrams"),
        ({"send": bytes(65508)}, "send has 65508 bytes, and a datagram 65507 at most"),
    ],
)
async def test_what_needs_a_stream_is_an_error(options: dict[str, object], told: str) -> None:
    with pytest.raises(greeter.ConfigError, match=f"^{told}"):
        await check("udp:127.0.0.1:9", **options)  # type: ignore[arg-type]
    with pytest.raises(greeter.ConfigError, match="^udp-once is a check of datagrams"):
        await check("127.0.0.1:9", only=["udp-once"])


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_the_owner_of_a_datagram_socket_is_found(family: int, host: str) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        address = (host, free_port(host))  # no other test listens there
        sock.bind(address)
        assert os.getpid() in owners(*inodes(family, address, socket.SOCK_DGRAM))
        assert inodes(family, address) == []
    assert inodes(family, address, socket.SOCK_DGRAM) == []


# -- the life of the process, and networks

DATAGRAMS = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("127.0.0.1", 0))
print(sock.getsockname()[1], flush=True)
while True:
    sock.sendto(b"Thank you for connecting", sock.recvfrom(65536)[1])
"""


@one_loop
@pytest.mark.one_interpreter
@pytest.mark.thorough
@pytest.mark.parametrize("workers", [1, 2])
async def test_greeter_answers_every_datagram_while_it_is_reloaded_and_stopped(workers: int) -> None:
    args = ("serve", "--no-access-log", "--workers", str(workers), "--listen", "udp:127.0.0.1:0")
    async with greeter_process(*args) as process:
        report = await check(
            process.address,
            pid=process.pid,
            restart=f"kill -HUP {process.pid}",
            stop=f"kill -TERM {process.pid}",
            only=["udp-greets", "udp-reload", "udp-stop"],
        )
        assert await process.ended() == 0
    assert verdicts(report) == {"udp-greets": PASS, "udp-reload": PASS, "udp-stop": PASS}


@one_loop
async def test_a_service_that_dies_with_datagrams_in_its_queue_is_found() -> None:
    async with peer(sys.executable, "-c", DATAGRAMS) as service:
        report = await check(
            f"udp:{service.target}",
            pid=service.pid,
            stop=f"sleep 0.5; kill {service.pid}",
            only=["udp-stop"],
            timeout=1.0,
        )
    assert verdicts(report)["udp-stop"] is FAIL
    assert figure(report, "udp-stop") == "20 of 20 silent"


@one_loop
@pytest.mark.one_interpreter
async def test_an_amplifier_is_found_from_a_public_network() -> None:
    require_namespaces()
    found = await play("checked", "asyncio")
    assert found["greeter"] == {"udp-greets": "pass", "udp-amplifies": "pass"} | {
        name: "skipped" for name in DATAGRAM_CHECKS if name not in ("udp-greets", "udp-amplifies")
    }
    assert found["amplifier"]["udp-amplifies"] == "510 B for 1 B"
    assert found["amplifier"]["udp-empty"] == "from this network, a reply to it would amplify"

"""The checks against services whose behaviour is known: each finds what is wrong there, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import signal
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trustme

import greeter
from greeter.conformance import CheckPlan, CheckReport, check
from greeter.conformance.checks import CHECKS
from greeter.conformance.findings import Verdict
from greeter.conformance.tested_service import TestedService, dials
from greeter.core.endpoint import Endpoint
from tests.conftest import PATIENCE, greeter_process, one_loop
from tests.support.loadtest_peers import abort_with_reset, refused_endpoint
from tests.support.lossy_peers import blocking_loop, compiled, peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PASS, FAIL, INFO, SKIPPED, UNSURE = Verdict.PASS, Verdict.FAIL, Verdict.INFO, Verdict.SKIPPED, Verdict.UNSURE
# The tested service is a process of its own.
alone = one_loop
# Those that take a moment, and harm nothing.
GENTLE = ("greets", "end", "speaks-first", "speaks-much", "half-close", "silent", "kept")


def verdicts(report: CheckReport) -> dict[str, Verdict]:
    return {
        result.check.id: result.finding.verdict
        for result in report.results
        if result.finding.verdict is not SKIPPED
    }


@pytest.fixture
def never_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check judges its clients also if this process stood still meanwhile, which would make it unsure.

    For a service that loses clients whatever the time they take.
    """
    monkeypatch.setattr("greeter.conformance.target_service.LATE", math.inf)


def figure(report: CheckReport, name: str) -> str:
    return next(result.finding.figure for result in report.results if result.check.id == name)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@contextlib.asynccontextmanager
async def asyncio_service(handler: Any, **options: Any) -> AsyncIterator[str]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0, **options)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


# -- the truths


@pytest.mark.parametrize("accept", ["direct", pytest.param("streams", marks=pytest.mark.thorough)])
async def test_greeter_keeps_every_check(accept: Any, no_fd_leak: None) -> None:
    async with greeter.serve(port=0, accept=accept, access_log=False) as server:
        report = await check(server.addresses[0], fast=True, skip=["burst-1000"], timeout=20.0)
    found = verdicts(report)
    assert {name for name, verdict in found.items() if verdict is not PASS} <= {"many-open"}
    assert found.keys() >= {*GENTLE, "resets", "burst", "silent-100"}
    assert (report.exit_code, report.broken) == (0, [])
    assert report.greeting == b"Thank you for connecting"


async def test_a_loop_that_closes_at_once_resets_clients_that_speak(never_late: None) -> None:
    async with blocking_loop() as service:
        report = await check(service.target, only=GENTLE)
    assert verdicts(report) == dict.fromkeys(GENTLE, PASS) | {"speaks-first": FAIL, "speaks-much": FAIL}
    assert figure(report, "speaks-first").endswith("of 44 reset")
    assert report.exit_code == 99
    (broken,) = report.broken
    assert broken.finding.story.endswith("RST")
    assert "got 24 B" in broken.finding.story


@one_loop
@pytest.mark.one_interpreter
@pytest.mark.thorough
async def test_a_lingering_close_in_c_keeps_every_check(tmp_path: Path) -> None:
    if (program := compiled(tmp_path)) is None:
        pytest.skip("there is no C compiler")
    async with peer(program) as service:
        report = await check(service.target, fast=True)
    # On a busy machine, its one thread may be kept from accepting for longer than its queue lasts.
    assert {name for name, verdict in verdicts(report).items() if verdict is FAIL} <= {"burst-1000"}


# -- services with one fault


async def test_a_service_that_resets_every_client_does_not_end_in_order(never_late: None) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"Thank you for connecting")
        await writer.drain()
        abort_with_reset(writer)

    async with asyncio_service(handle) as target:
        report = await check(target, only=["greets", "end"])
    assert verdicts(report)["end"] is FAIL


async def test_a_service_that_takes_a_half_close_for_the_end_loses_the_client(never_late: None) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await reader.read()
                writer.close()  # the client has left, it thinks
                return
        writer.write(b"Thank you for connecting")
        writer.close()

    async with asyncio_service(handle) as target:
        report = await check(target, only=["half-close"])
    assert verdicts(report)["half-close"] is FAIL
    assert "lost" in figure(report, "half-close")


async def test_a_refusal_in_words_is_no_greeting(never_late: None) -> None:
    open_now = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now
        open_now += 1
        try:
            if open_now > 5:
                writer.write(b"421 too many connections\r\n")
            else:
                writer.write(b"220 mail.example ESMTP\r\n")
                await reader.read()
        finally:
            open_now -= 1
            writer.close()

    async with asyncio_service(handle) as target:
        report = await check(target, until="reply", polite=True, only=["silent"])
    assert verdicts(report)["silent"] is FAIL
    assert figure(report, "silent") == "10 of 10 other"


async def test_a_limit_that_refuses_some_clients_in_words_does_not_hold_up_others() -> None:
    open_now = refused = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now, refused
        open_now += 1
        try:
            if open_now > 10 and refused < 5:
                refused += 1
                writer.write(b"421 too many connections\r\n")
            else:
                writer.write(b"220 mail.example ESMTP\r\n")
                await reader.read()
        finally:
            open_now -= 1
            writer.close()

    async with asyncio_service(handle) as target:
        report = await check(target, until="reply", polite=True, only=["silent"])
    assert verdicts(report)["silent"] is PASS
    assert figure(report, "silent") == "5 of 10 other"


@one_loop
@pytest.mark.thorough
async def test_a_service_of_one_slot_is_asked_what_waits_after_the_others(never_late: None) -> None:
    one = asyncio.Lock()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with one:
            with contextlib.suppress(ConnectionError):
                if await reader.readline():
                    writer.write(b"hello")
                    writer.write_eof()
        writer.close()

    async with asyncio_service(handle) as target:
        report = await check(
            target, send=b"x\n", only=["end", "half-close", "silent", "cut-off"], idle_limit=0.5
        )
    assert verdicts(report) == {
        "greets": PASS,
        "end": PASS,
        "half-close": PASS,
        "silent": FAIL,
        "cut-off": FAIL,
    }


async def test_what_follows_the_end_of_a_service_is_unsure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greeter.conformance.check_run.RETRIES", (0.0, 0.01))
    clients = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal clients
        clients += 1
        if clients <= 14:  # enough for ``greets`` and what comes before the control client
            writer.write(b"Thank you for connecting")
        writer.close()

    async with asyncio_service(handle) as target:
        report = await check(target, only=["greets", "end", "half-close", "silent"])
    assert verdicts(report)["silent"] is UNSURE
    assert figure(report, "silent") == "the service stopped greeting at end"
    assert figure(report, "half-close") == "the service stopped greeting at end"
    assert report.exit_code == 98


async def test_a_service_that_keeps_its_clients_does_not_let_go() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"Thank you for connecting")
        writer.write_eof()
        while await reader.read(100):
            pass
        writer.close()

    async with asyncio_service(handle) as target:
        report = await check(target, only=["let-go"], idle_limit=1.0)
    assert verdicts(report)["let-go"] is FAIL
    assert figure(report, "let-go") == "kept for 1 s"


@one_loop
async def test_a_deadline_that_moves_with_each_byte_does_not_cut_off() -> None:
    a_byte_came = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Its deadline passes for a client that has been silent for longer than another one."""
        writer.write(b"220 mail.example ESMTP\r\n")
        said, passed = asyncio.ensure_future(reader.read(1)), asyncio.ensure_future(a_byte_came.wait())
        await asyncio.wait([said, passed], return_when=asyncio.FIRST_COMPLETED)
        passed.cancel()
        if said.done() and said.result():
            a_byte_came.set()
            while await reader.read(100):
                pass
        said.cancel()
        writer.close()

    async with asyncio_service(handle) as target:
        report = await check(target, until="line", only=["cut-off"], idle_limit=3.0)
    assert verdicts(report)["cut-off"] is FAIL
    assert "silent: closed after" in figure(report, "cut-off")
    assert "a byte a second: kept" in figure(report, "cut-off")


async def test_a_short_accept_queue_is_named() -> None:
    async with blocking_loop(backlog=3) as service:
        plan = CheckPlan(Endpoint.parse(service.target), timeout=0.5)  # of clients that may be lost
        finding = await CHECKS["burst"].run(TestedService(plan, await dials(plan)))
    assert finding.figure.endswith("queue 3")


@one_loop
@pytest.mark.thorough
async def test_a_dropped_syn_is_the_fault_of_a_short_queue_also_on_a_busy_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("greeter.conformance.checks.bursts.LARGE_CROWD", 20)
    monkeypatch.setattr("greeter.conformance.target_service.LATE", -1.0)  # every wait is late
    async with blocking_loop(backlog=3) as service:
        os.kill(service.pid, signal.SIGSTOP)  # so that the queue is full, however fast it is
        asyncio.get_running_loop().call_later(0.5, os.kill, service.pid, signal.SIGCONT)
        plan = CheckPlan(Endpoint.parse(service.target))
        finding = await CHECKS["burst-1000"].run(TestedService(plan, await dials(plan)))
    assert finding.verdict is FAIL
    assert finding.figure.endswith("late; queue 3")


@pytest.mark.parametrize(("backlog", "verdict"), [(15, INFO), (100, PASS)])
async def test_a_burst_that_a_shorter_queue_took_is_a_figure_only(
    backlog: int, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greeter.conformance.checks.bursts.LARGE_CROWD", 16)  # the queue takes one more
    async with blocking_loop(backlog=backlog) as service:
        report = await check(service.target, only=["burst-1000"])
    assert verdicts(report)["burst-1000"] is verdict


@pytest.mark.parametrize(("refused", "verdict"), [(3, PASS), (1000, FAIL)])
@pytest.mark.thorough
async def test_a_refusal_in_words_right_after_resets_is_a_limit_at_work(
    refused: int, verdict: Verdict, monkeypatch: pytest.MonkeyPatch, never_late: None
) -> None:
    monkeypatch.setattr("greeter.conformance.check_run.RETRIES", (0.0,))
    monkeypatch.setattr("greeter.conformance.checks.bursts.RESETS", 20)
    asked = 0

    async def limited(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        with contextlib.suppress(ConnectionError):
            if await reader.read(1):
                asked += 1
                busy = 10 < asked <= 10 + refused
                writer.write(b"421 too many" if busy else b"220 hello")
                await writer.drain()
        writer.close()

    async with asyncio_service(limited) as target:
        report = await check(target, send=b"x", only=["resets"])
    assert verdicts(report)["resets"] is verdict
    assert "other" in figure(report, "resets")


# -- what is asked for


async def test_a_target_that_never_greets_has_no_checks() -> None:
    report = await check(refused_endpoint())
    assert (report.results, report.exit_code) == ((), 1)
    assert report.to_json()["checks"] == []
    assert report.reason == "connection refused"


async def test_known_failures_pass_and_surprises_fail(never_late: None) -> None:
    async with blocking_loop() as service:
        known = await check(service.target, only=["speaks-first"], expect_fail=["speaks-first"])
        surprise = await check(service.target, only=["end"], expect_fail=["end"])
    assert (known.exit_code, known.broken) == (0, [])
    assert surprise.exit_code == 99


async def test_strict_counts_what_should_be(never_late: None) -> None:
    async with blocking_loop() as service:
        names = ["speaks-much"]
        assert (await check(service.target, only=names)).exit_code == 0
        assert (await check(service.target, only=names, strict=True)).exit_code == 99


async def test_a_check_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(greeter.ConfigError, match="'speak-first' is not a check"):
        await check("127.0.0.1:9", only=["speak-first"])


async def test_a_unix_socket_is_checked_too(tmp_path: Path) -> None:
    path = str(tmp_path / "service")
    async with greeter.serve(path=path, access_log=False):
        report = await check(f"unix:{path}", only=["greets", "end", "half-close", "let-go"])
    assert verdicts(report) == dict.fromkeys(("greets", "end", "half-close"), PASS)
    assert figure(report, "let-go") == "the target is a Unix socket"


# -- PROXY headers and TLS


async def test_a_service_that_guesses_whether_a_header_comes_is_found() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await reader.readline()
        writer.write(b"Thank you for connecting")
        writer.close()

    async with asyncio_service(handle) as target:
        report = await check(target, proxy_protocol="v1", only=["proxy-bad"])
    assert verdicts(report)["proxy-bad"] is FAIL


@pytest.mark.parametrize("accept", ["direct", "streams"])
@pytest.mark.thorough
async def test_greeter_keeps_the_checks_of_tls_and_proxy_headers(
    accept: Any, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    options: dict[str, Any] = {"ssl": server_tls, "proxy_from": ["127.0.0.0/8"], "accept": accept}
    clients: dict[str, Any] = {
        "ssl": client_tls,
        "server_hostname": "localhost",
        "proxy_protocol": "v2",
        "timeout": 20.0,
    }
    names = [name for name in CHECKS if name.startswith(("tls-", "proxy-")) and name != "tls-cut-off"]
    async with greeter.serve(port=0, access_log=False, **options) as server:
        report = await check(server.addresses[0], only=["greets", *names], **clients)
    assert {name for name, verdict in verdicts(report).items() if verdict is not PASS} == {"tls-half"}
    assert len(verdicts(report)) == 12
    # A deadline that clients of the other checks could miss on a slow machine.
    async with greeter.serve(port=0, access_log=False, greet_timeout=2.0, **options) as server:
        report = await check(server.addresses[0], only=["tls-cut-off"], idle_limit=PATIENCE, **clients)
    assert verdicts(report)["tls-cut-off"] is PASS


async def test_a_tls_service_without_close_notify_is_found(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def serve() -> None:
        listener.settimeout(0.1)
        while not ended.is_set():
            try:
                sock, _ = listener.accept()
                sock.settimeout(PATIENCE)
                wrapped = server_tls.wrap_socket(sock, server_side=True)
                wrapped.sendall(b"Thank you for connecting")
                wrapped.close()  # without unwrap()
            except OSError:
                continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        report = await check(
            f"127.0.0.1:{listener.getsockname()[1]}",
            ssl=client_tls,
            server_hostname="localhost",
            only=["tls-end"],
        )
    finally:
        ended.set()
        thread.join()
        listener.close()
    assert verdicts(report)["tls-end"] is FAIL
    assert figure(report, "tls-end") == "TLSv1.2: 5 of 5 without, TLSv1.3: 5 of 5 without"


# -- the life of the process


@one_loop
@pytest.mark.one_interpreter
@pytest.mark.thorough
@pytest.mark.parametrize("workers", [1, 2])
async def test_greeter_keeps_the_checks_of_reload_stop_and_descriptors(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greeter.conformance.checks.resources.SETTLE_SECONDS", 1.5)  # on a slow machine
    args = ("serve", "--no-access-log", "--workers", str(workers))
    async with greeter_process(*args, "--listen", "127.0.0.1:0") as process:
        report = await check(
            process.address,
            pid=process.pid,
            restart=f"kill -HUP {process.pid}",
            stop=f"kill -TERM {process.pid}",
            only=["greets", "wakes", "descriptors", "reload", "stop"],
        )
        found = verdicts(report)
        assert await process.ended() == 0
    assert found == {"greets": PASS, "wakes": INFO, "descriptors": PASS, "reload": PASS, "stop": PASS}
    assert report.exit_code == 0


@one_loop
@pytest.mark.one_interpreter
@pytest.mark.thorough
async def test_a_service_that_dies_with_clients_in_its_queue_is_found() -> None:
    async with blocking_loop(backlog=5) as service:
        stop = f"sleep 0.5; kill {service.pid}"  # it takes a while, and the service must not go on before
        report = await check(service.target, pid=service.pid, stop=stop, only=["greets", "stop"])
    assert verdicts(report)["stop"] is FAIL
    assert figure(report, "stop") == "6 of 6 lost"


@pytest.mark.thorough
async def test_a_process_that_has_ended_meanwhile_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of OpenSSH end, which have its listening socket open for a moment."""
    async with blocking_loop() as service:
        ended = await asyncio.create_subprocess_exec("true")
        await ended.wait()
        monkeypatch.setattr(
            "greeter.conformance.checks.resources.serving_pids", lambda *_: [service.pid, ended.pid]
        )
        report = await check(service.target, pid=service.pid, only=["descriptors"])
    assert verdicts(report).get("descriptors") is not UNSURE


async def test_an_error_of_the_system_is_unsure_and_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with blocking_loop() as service:
        monkeypatch.setattr("greeter.conformance.checks.resources.serving_pids", fails)
        report = await check(service.target, pid=service.pid, only=["greets", "descriptors"])
    assert verdicts(report)["descriptors"] is UNSURE
    assert figure(report, "descriptors") == "too many open files"


async def test_a_process_that_does_not_listen_is_refused() -> None:
    async with blocking_loop() as service:
        with pytest.raises(greeter.ConfigError, match="process 1 does not listen at the target"):
            await check(service.target, pid=1, only=["wakes"])


async def test_a_reload_that_fails_is_unsure() -> None:
    async with blocking_loop() as service:
        report = await check(service.target, restart="echo broken >&2; exit 7", only=["reload"])
    assert verdicts(report)["reload"] is UNSURE
    assert figure(report, "reload") == "--restart: exit code 7: broken"

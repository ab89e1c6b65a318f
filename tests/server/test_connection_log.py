"""What is logged of clients: fields, tracebacks, bounds, and at debug how each connection ended."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from greeter import Greeting, serve
from greeter.core.admission import Limits
from greeter.errors import GreetingError
from greeter.server.accept_pause import LOG_INTERVAL, MAX_MATTERS
from greeter.server.connection_log import MAX_LINES
from tests.conftest import PATIENCE
from tests.server.test_tracker import CLIENT, GREET, Harness
from tests.support.peers import connect, read_to_end, reset, until

if TYPE_CHECKING:
    from collections.abc import Iterable

HEALTH_CHECKS = 200


def events(caplog: pytest.LogCaptureFixture, name: str) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if vars(record).get("event") == name]


def broken(peer: object) -> str:
    raise ZeroDivisionError("a bug")


async def broken_later(peer: object) -> str:
    await asyncio.sleep(0)
    return broken(peer)


@pytest.mark.parametrize("kind", ["quick", "thread", "async"])
async def test_a_callable_that_fails_is_logged_with_its_client_its_error_and_its_traceback(
    kind: str, accept: Any, caplog: pytest.LogCaptureFixture
) -> None:
    greeting = Greeting(broken_later if kind == "async" else broken, quick=kind == "quick")
    async with serve(greeting, port=0, accept=accept) as server:
        client = await connect(server.port)
        host, port = client.getsockname()
        await read_to_end(client)
    (entry,) = events(caplog, "failed")
    assert (entry["peer"], entry["reason"]) == (f"{host}:{port}", "greeting_error")
    assert entry["error"] == "the greeting callable raised ZeroDivisionError: a bug"
    assert 0 <= entry["elapsed_s"] < 600
    kind_of_error, _, trace = entry["exc_info"]
    assert kind_of_error is ZeroDivisionError
    # It begins in the callable, not in the server.
    assert trace.tb_frame.f_code.co_filename == __file__


@pytest.mark.parametrize(("level", "tracebacks"), [(logging.WARNING, 2), (logging.DEBUG, 20)])
def test_a_traceback_is_logged_once_a_second_for_each_type_and_at_debug_always(
    level: int, tracebacks: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(level, "greeter")
    harness = Harness()
    for number in range(20):
        error = GreetingError("it failed")
        error.__cause__ = ValueError() if number % 2 else KeyError()
        harness.tracker.count_greeting_error(CLIENT, object(), error, 0.0)
    assert sum(entry["exc_info"] is not None for entry in events(caplog, "failed")) == tracebacks


def test_failures_are_bounded_and_those_left_out_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    harness = Harness()
    for _ in range(500):
        harness.tracker.count_greeting_error(CLIENT, object(), GreetingError("it failed"), 0.0)
    assert len(events(caplog, "failed")) == MAX_LINES
    harness.loop.advance(LOG_INTERVAL)
    harness.tracker.count_greeting_error(CLIENT, object(), GreetingError("again"), 0.0)
    last = events(caplog, "failed")[-1]
    assert last["left_out"] == 500 - MAX_LINES
    assert last["msg"] % last["args"] == f"{CLIENT}: again ({500 - MAX_LINES} more were not logged)"


def test_what_is_remembered_of_types_of_exceptions_is_bounded() -> None:
    harness = Harness()
    limit = harness.tracker.log.limit
    for number in range(10 * MAX_MATTERS):
        for _ in range(2):  # the second one is left out
            error = GreetingError("it failed")
            error.__cause__ = type(f"Error{number}", (Exception,), {})()
            harness.tracker.count_greeting_error(CLIENT, object(), error, 0.0)
        harness.loop.advance(LOG_INTERVAL)
    assert max(len(limit._intervals), len(limit._left_out)) <= MAX_MATTERS


def test_a_greet_deadline_is_logged_with_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    harness = Harness()
    harness.start()
    harness.loop.advance(GREET + 1)
    (entry,) = events(caplog, "failed")
    assert (entry["peer"], entry["reason"]) == ("192.0.2.7:3747", "greet_timeout")
    assert entry["error"] == "not greeted within 10 s"
    assert entry["elapsed_s"] == pytest.approx(GREET, abs=0.1)


def test_a_rejected_client_is_named(caplog: pytest.LogCaptureFixture) -> None:
    harness = Harness(limits=Limits(deny=["192.0.2.0/24"]))
    assert not harness.tracker.accepted(CLIENT, object())
    (entry,) = events(caplog, "rejected")
    assert (entry["peer"], entry["reason"], entry["count"]) == ("192.0.2.7:3747", "denied", 1)


def check_health(port: int, resets: bool) -> None:
    """Connect and leave, HEALTH_CHECKS times."""
    for _ in range(HEALTH_CHECKS):
        sock = socket.create_connection(("127.0.0.1", port))
        if resets:
            reset(sock)
        else:
            sock.close()


@pytest.mark.parametrize("ending", ["end of stream", "reset"])
@pytest.mark.parametrize("preamble", ["proxy", "tls"])
@pytest.mark.parametrize("access_log", [False, True])
async def test_health_checks_that_connect_and_leave_are_a_line_a_second_at_the_most(
    access_log: bool, preamble: str, ending: str, accept: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "greeter")
    loop = asyncio.get_running_loop()
    options: dict[str, Any] = {"proxy_from": ["127.0.0.1"]}
    if preamble == "tls":  # no handshake gets as far as a certificate
        options = {"ssl": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)}
    since = loop.time()
    async with serve(port=0, accept=accept, access_log=access_log, **options) as server:
        await asyncio.to_thread(check_health, server.port, ending == "reset")
        await until(lambda: server.stats.accepted == HEALTH_CHECKS, "all accepted")
        await until(lambda: server.stats.open == 0, "all closed")
    lines = len(events(caplog, "failed"))
    if access_log:
        assert 1 <= lines <= 1 + (loop.time() - since) / LOG_INTERVAL
    else:
        assert lines == 0
    assert sum(server.stats.failed.values()) == HEALTH_CHECKS


async def test_a_handshake_that_is_garbage_is_logged_without_an_access_log(
    accept: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "greeter")
    async with serve(port=0, accept=accept, access_log=False, proxy_from=["127.0.0.1"]) as server:
        client = await connect(server.port)
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        await read_to_end(client)
    (entry,) = events(caplog, "failed")
    assert entry["reason"] == "proxy"


def endings(caplog: pytest.LogCaptureFixture) -> Counter[tuple[str, int]]:
    return Counter((entry["reason"], entry["sent_bytes"]) for entry in events(caplog, "closed"))


@pytest.mark.parametrize("kind", ["fixed", "template", "thread", "async"])
async def test_at_debug_each_connection_has_a_line_when_it_is_closed(
    kind: str, accept: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def later(_: object) -> str:
        return "Hello"

    sources: dict[str, Any] = {"fixed": b"Hello", "template": "Hell$count", "thread": lambda _: "Hello"}
    caplog.set_level(logging.DEBUG, "greeter")
    async with serve(sources.get(kind, later), port=0, accept=accept, linger_timeout=PATIENCE) as server:
        for _ in range(3):
            await read_to_end(await connect(server.port))
        await until(lambda: server.stats.open == 0, "they are closed")
        server._tracker.lingering.seconds = server._tracker.lingering_sockets.seconds = 0.1
        with await connect(server.port):
            await until(lambda: server.stats.linger_timeouts == 1, "the linger deadline")
        await until(lambda: server.stats.open == 0, "all closed")
    assert endings(caplog) == {("greeted", 5): 3, ("linger_timeout", 5): 1}
    entry = events(caplog, "closed")[0]
    assert entry["peer"].startswith("127.0.0.1:")
    assert 0 <= entry["elapsed_s"] < 600


async def test_at_debug_those_that_were_not_greeted_say_why(
    accept: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def never(_: object) -> str:
        await asyncio.sleep(3600)
        return ""

    caplog.set_level(logging.DEBUG, "greeter")
    limits = Limits(deny=["192.0.2.0/24"])
    options: dict[str, Any] = {"limits": limits, "proxy_from": ["127.0.0.1"], "drain_timeout": 0.1}
    async with serve(never, port=0, accept=accept, **options) as server:
        bad, denied, leaving, staying = [await connect(server.port) for _ in range(4)]
        bad.send(b"GET / HTTP/1.0\r\n\r\n")
        denied.send(b"PROXY TCP4 192.0.2.1 127.0.0.1 7 8\r\n")
        for sock in (leaving, staying):
            sock.send(b"PROXY TCP4 203.0.113.9 127.0.0.1 9 8\r\n")
        await read_to_end(bad)
        await read_to_end(denied)
        reset(leaving)
        await until(lambda: server.stats.failed["reset"] == 1, "the reset")
    staying.close()
    assert endings(caplog) == {(why, 0): 1 for why in ("proxy", "denied", "reset", "aborted")}
    peers = {entry["reason"]: entry["peer"] for entry in events(caplog, "closed")}
    assert (peers["reset"], peers["denied"]) == ("203.0.113.9:9", "192.0.2.1:7")


async def test_without_debug_nothing_is_kept_of_a_connection(
    accept: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "greeter")
    async with serve(port=0, accept=accept) as server:
        assert server._tracker.endings is None


# -- pauses


def states(caplog: pytest.LogCaptureFixture) -> list[str]:
    names: Iterable[Any] = (vars(record).get("event") for record in caplog.records)
    return [name for name in names if name in ("paused", "resumed")]


def test_the_end_of_a_pause_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "greeter")
    harness = Harness(capacity=1)
    connection = harness.linger()
    harness.tracker.at_capacity()
    connection.close()
    harness.loop.advance(LOG_INTERVAL)
    assert states(caplog) == ["paused", "resumed"]
    assert harness.loop.timers == []


def test_pauses_that_alternate_end_in_a_line_that_is_true(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "greeter")
    harness = Harness(capacity=1)
    for _ in range(100):
        connection = harness.linger()
        harness.tracker.at_capacity()
        connection.close()
    harness.linger()
    harness.tracker.at_capacity()
    assert states(caplog) == ["paused", "resumed"]
    harness.loop.advance(LOG_INTERVAL)
    assert states(caplog) == ["paused", "resumed", "paused"]
    harness.tracker.stop_accepting()

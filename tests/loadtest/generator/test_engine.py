"""The engine with real sockets, on every loop. Each server behaves in one known way."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from greeter import serve
from greeter.core.proxy_protocol import NeedMore, parse
from greeter.loadtest import LoadPlan, Stage
from greeter.loadtest.generator import engine, timer
from greeter.loadtest.generator.engine import Engine
from greeter.loadtest.generator.event_poller import EpollPoller, ReaderPoller
from greeter.loadtest.generator.load_connection import earliest_start
from greeter.loadtest.generator.target import Target, resolve
from greeter.loadtest.plan.outcome import GREETED
from greeter.loadtest.plan.pacer import LATE_TOLERANCE
from tests.conftest import PATIENCE, one_loop
from tests.support.engine_clock import Clock, clock, connected
from tests.support.loadtest_peers import (
    GREETING,
    abort_with_reset,
    close_at_once,
    greet,
    greet_and_stay,
    never_accepting,
    refused_endpoint,
    serving,
    wait_for_close,
)
from tests.support.peers import reset, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from greeter.loadtest.metrics.run_metrics import RunMetrics
    from greeter.loadtest.metrics.timeline import Interval
    from tests.support.loadtest_peers import Handler

pytestmark = pytest.mark.usefixtures("no_fd_leak")

__all__ = ["clock"]  # a fixture


@pytest.fixture(params=["epoll", "readers"])
def poller_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the engine with epoll and timerfd, and without them."""
    if request.param == "readers":
        monkeypatch.setattr(engine, "new_poller", ReaderPoller)
        monkeypatch.setattr(timer, "_timerfd", lambda: None)


async def run(target: str, **options: Any) -> RunMetrics:
    options = {"timeout": 5.0, **options}
    plan = LoadPlan(target, **options)
    metrics = await Engine(plan, await resolve(plan)).run()
    assert metrics.attempted == sum(metrics.outcomes.values())
    assert metrics.failed.total == metrics.attempted - metrics.outcomes[GREETED]
    return metrics


def outcomes(metrics: RunMetrics) -> dict[str, int]:
    return {outcome: count for outcome, count in metrics.outcomes.items() if count}


async def send_bytewise(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for byte in GREETING:
        writer.write(bytes((byte,)))
        await writer.drain()
        await asyncio.sleep(0)


async def send_lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hi there\n" + bytes(500) + b"SECOND\n")
    await reader.read()


async def never_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(GREETING)
    await reader.read()


async def reset_at_once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    abort_with_reset(writer)


async def reset_after_greeting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(GREETING)
    await asyncio.sleep(0.02)
    abort_with_reset(writer)


async def send_reply(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220-wait\r\n")
    await asyncio.sleep(0.01)
    writer.write(b"220 ready\r\n")


async def send_teaser_only(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220-wait\r\n")


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.readline())


async def send_megabyte(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(bytes(1_000_000))
    await writer.drain()


@pytest.mark.usefixtures("poller_kind")
@pytest.mark.parametrize(
    ("handler", "options", "outcome"),
    [
        (greet, {}, GREETED),
        (greet, {"expect": "you for"}, GREETED),
        (send_bytewise, {"expect": "Thank you for connecting"}, GREETED),
        (greet_and_stay, {"until": "line", "expect": "220 "}, GREETED),
        (send_lines, {"until": "line", "max_bytes": 100}, GREETED),
        (send_lines, {"until": "line", "max_bytes": 9, "expect": "hi there"}, GREETED),
        (send_lines, {"until": "line", "max_bytes": 8}, "too_large"),
        (send_lines, {"until": "line", "expect": "SECOND"}, "unexpected_greeting"),
        (send_megabyte, {"max_bytes": 1_000_000}, GREETED),
        (greet, {"until": "line"}, GREETED),  # the end of the stream also ends a line
        (close_at_once, {}, "empty"),
        (greet, {"expect": "Hello"}, "unexpected_greeting"),
        (greet_and_stay, {"until": "line", "expect": "Hello"}, "unexpected_greeting"),
        (send_megabyte, {"max_bytes": 999_999}, "too_large"),
        (reset_at_once, {}, "reset"),
        (reset_after_greeting, {}, "reset"),
        (send_reply, {"until": "reply", "expect": "ready"}, GREETED),
        (send_reply, {"until": "line", "expect": "ready"}, "unexpected_greeting"),
        (send_reply, {"until": "text:220 ", "expect": "220-wait"}, GREETED),
        (send_reply, {"until": "bytes:8", "expect": "220-wait"}, GREETED),
        (send_reply, {"until": "text:never"}, "unexpected_greeting"),  # the stream ends without it
        (send_reply, {"until": "bytes:1000"}, "unexpected_greeting"),
        (send_teaser_only, {"until": "reply"}, "unexpected_greeting"),
        (send_teaser_only, {"until": "line"}, GREETED),
        (greet_and_stay, {"until": "idle:20ms", "expect": "220 "}, GREETED),
        (greet, {"until": "idle:60s"}, GREETED),
        (echo, {"send": "HELLO\\n", "expect": "HELLO"}, GREETED),
        (echo, {"send": b"HELLO\n", "until": "line", "expect": "HELLO"}, GREETED),
        (echo, {"proxy_protocol": "v1", "expect": "PROXY TCP4 127.0.0.1 127.0.0.1 "}, GREETED),
        (reset_after_greeting, {"until": "reply", "expect": "connecting"}, "reset"),
        (reset_after_greeting, {"expect": "connecting"}, GREETED),
        (reset_after_greeting, {"expect": "Hello"}, "reset"),
    ],
)
async def test_every_connection_ends_in_its_class(
    handler: Handler, options: dict[str, Any], outcome: str
) -> None:
    async with serving(handler) as target:
        metrics = await run(target, count=20, connections=20, **options)
    assert outcomes(metrics) == {outcome: 20}
    assert metrics.connect.total == 20
    assert metrics.reset_after_greeting == (
        20 if handler is reset_after_greeting and outcome == GREETED else 0
    )
    answered = outcome in (GREETED, "empty", "unexpected_greeting")
    assert metrics.service.total == metrics.response.total == 20 * answered
    assert metrics.first_byte.total == 20 * (answered and outcome != "empty")


def received(engine: Engine) -> int:
    """Return how many bytes of incomplete greetings the engine has received."""
    return sum(connection.received for connection in engine._waiting.values())


@pytest.mark.usefixtures("poller_kind")
@pytest.mark.parametrize(
    ("handler", "options", "outcome"),
    [
        (wait_for_close, {"timeout": 0.05}, "connected_no_greeting"),
        (never_end, {"timeout": 0.4}, "greeting_timeout"),
        (never_end, {"until": "line", "timeout": 0.4}, "greeting_timeout"),
        (wait_for_close, {"until": "idle:20ms", "timeout": 0.4}, "connected_no_greeting"),
        (echo, {"send": b"HELLO", "timeout": 0.4}, "connected_no_greeting"),
    ],
)
async def test_a_timeout_ends_a_connection_in_its_class(
    handler: Handler, options: dict[str, Any], outcome: str, clock: Clock
) -> None:
    """With a clock that stands still until the engine has seen what the server does within the timeout."""
    sent = len(GREETING) if handler is never_end else 0
    clock.settled = lambda engine: connected(engine) and received(engine) == sent * len(engine._waiting)
    async with serving(handler) as target:
        metrics = await run(target, count=20, connections=20, **options)
    assert outcomes(metrics) == {outcome: 20}
    assert metrics.connect.total == 20
    assert metrics.service.total == metrics.response.total == metrics.first_byte.total == 0
    assert metrics.failed.percentiles(0, 100) == pytest.approx([options["timeout"] * 1e6] * 2, rel=0.001)


@pytest.mark.usefixtures("poller_kind")
async def test_a_refused_connection_has_its_class() -> None:
    metrics = await run(refused_endpoint(), count=20)
    assert outcomes(metrics) == {"connect_refused": 20}
    assert metrics.connect.total == 0
    assert metrics.reasons == {"connect_refused": {"Connection refused": 20}}


async def test_a_queue_that_is_not_accepted_from() -> None:
    with never_accepting(backlog=3) as (_, target):
        metrics = await run(target, count=12, connections=12, timeout=0.3, connect_timeout=0.15)
    found = outcomes(metrics)
    assert GREETED not in found
    # The kernel queues one connection more than the backlog. Queued connections are connected for the client.
    assert found["connected_no_greeting"] >= 4
    assert set(found) <= {"connected_no_greeting", "connect_timeout"}
    assert metrics.connect.total == found["connected_no_greeting"]


@pytest.mark.usefixtures("poller_kind")
async def test_unix_sockets(tmp_path: Path) -> None:
    async with serving(greet, path=str(tmp_path / "s")) as target:
        assert outcomes(await run(target, count=30, connections=7)) == {GREETED: 30}
    async with serving(greet, path=f"\0greeter-load-{os.getpid()}") as target:
        assert target.startswith("unix:@")
        assert outcomes(await run(target, count=30, connections=7)) == {GREETED: 30}
    metrics = await run(f"unix:{tmp_path}/none", count=2)
    assert outcomes(metrics) == {"connect_error": 2}
    assert metrics.reasons == {"connect_error": {"No such file or directory": 2}}


@pytest.mark.usefixtures("poller_kind")
async def test_a_full_unix_queue_is_retried(tmp_path: Path) -> None:
    with never_accepting(path=str(tmp_path / "s")) as (listener, target):
        listener.setblocking(False)
        running = asyncio.create_task(run(target, count=5, connections=5))
        loop = asyncio.get_running_loop()
        for _ in range(5):
            client, _ = await loop.sock_accept(listener)
            client.sendall(GREETING)
            client.close()
        metrics = await running
    assert outcomes(metrics) == {GREETED: 5}


@pytest.mark.usefixtures("poller_kind")
async def test_a_unix_queue_that_stays_full_is_a_connect_timeout(clock: Clock, tmp_path: Path) -> None:
    clock.settled = lambda engine: len(engine._connecting) in (0, 4)  # the queue has room for one
    with never_accepting(path=str(tmp_path / "s")) as (_, target):
        metrics = await run(target, count=5, connections=5, timeout=0.1, connect_timeout=0.05)
    assert outcomes(metrics) == {"connected_no_greeting": 1, "connect_timeout": 4}


async def test_ipv6() -> None:
    async with serving(greet, "::1") as target:
        assert outcomes(await run(target, count=10)) == {GREETED: 10}


async def test_source_addresses_take_turns() -> None:
    seen: list[str] = []

    async def note(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer.get_extra_info("peername")[0])
        writer.write(GREETING)

    async with serving(note) as target:
        metrics = await run(target, count=10, source_ips=["127.0.0.2", "127.0.0.3"])
    assert outcomes(metrics) == {GREETED: 10}
    assert sorted(seen) == ["127.0.0.2"] * 5 + ["127.0.0.3"] * 5


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EADDRINUSE])
async def test_running_out_of_descriptors_or_addresses_is_local_exhausted(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, number = Target.open, itertools.count()

    def every_other(self: Target) -> Any:
        if next(number) % 2:
            raise OSError(code, "injected")
        return real(self)

    monkeypatch.setattr(Target, "open", every_other)
    async with serving(greet) as target:
        metrics = await run(target, count=20, connections=2)
    assert outcomes(metrics) == {GREETED: 10, "local_exhausted": 10}


async def test_a_pause_that_ends_a_greeting_is_in_no_figure(clock: Clock) -> None:
    sent = 0

    async def two_parts(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        for part, seconds in ((b"one ", 0.05), (b"two", 60.0)):
            writer.write(part)
            sent += len(part)
            await clock.sleep(seconds)

    clock.settled = lambda engine: clock.all_asleep(engine) and received(engine) == sent
    began = clock.now
    async with serving(two_parts) as target:
        metrics = await run(target, count=5, connections=5, until="idle:600ms", expect="one two")
    assert outcomes(metrics) == {GREETED: 5}
    assert clock.now - began == pytest.approx(0.65, abs=1e-6)
    for histogram in (metrics.service, metrics.response):
        assert histogram.percentiles(0, 100) == pytest.approx([50_000] * 2, rel=0.001)
    assert metrics.elapsed == pytest.approx(0.05, abs=1e-6)


async def test_a_client_that_speaks_first_sends_all_of_it() -> None:
    received: list[int] = []

    async def slow_reader(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        count = 0
        while count < 3_000_000:
            await asyncio.sleep(0)
            count += len(await reader.read(65536))
        received.append(count)
        writer.write(GREETING)

    async with serving(slow_reader) as target:
        metrics = await run(target, count=3, connections=3, send=bytes(3_000_000), timeout=60.0)
    assert outcomes(metrics) == {GREETED: 3}
    assert received == [3_000_000] * 3


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_each_connection_has_its_own_proxy_header(version: str, tmp_path: Path) -> None:
    seen: list[tuple[Any, Any]] = []

    async def read_header(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = b""
        while isinstance(parsed := parse(data), NeedMore):
            data += await reader.readexactly(parsed.wanted)
        seen.append((parsed.header.source, writer.get_extra_info("peername")))
        writer.write(await reader.readline())

    async with serving(read_header) as target:
        metrics = await run(target, count=5, send=b"HI\n", expect="HI", proxy_protocol=version)
    assert outcomes(metrics) == {GREETED: 5}
    assert [source for source, _ in seen] == [peer for _, peer in seen]
    assert len(set(seen)) == 5
    async with serving(read_header, path=str(tmp_path / "s")) as target:
        assert outcomes(await run(target, count=2, send=b"HI\n", proxy_protocol=version)) == {GREETED: 2}


def close_with_unread_input(listener: socket.socket) -> None:
    """Greet clients that have sent something, and close without reading it, as nginx's ``return`` does."""
    with contextlib.suppress(OSError):  # the listener was closed
        while True:
            client, _ = listener.accept()
            with client:
                select.select([client], [], [], PATIENCE)
                client.sendall(GREETING)


async def test_a_server_that_resets_clients_that_speak_first_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=close_with_unread_input, args=(listener,))
        thread.start()
        try:
            metrics = await run(
                f"127.0.0.1:{listener.getsockname()[1]}", count=20, connections=5, send=b"HELLO"
            )
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert outcomes(metrics) == {"reset": 20}
    async with serve(port=0, greeting=GREETING.decode()) as server:
        metrics = await run(str(server.addresses[0]), count=200, connections=20, send=b"HELLO")
    assert outcomes(metrics) == {GREETED: 200}
    assert metrics.reset_after_greeting == 0


async def test_a_refused_client_of_a_closed_loop_waits_longer_each_time() -> None:
    began = time.monotonic()
    metrics = await run(refused_endpoint(), count=18, connections=2)
    assert outcomes(metrics) == {"connect_refused": 18}
    assert time.monotonic() - began >= 0.227, "1 + 2 + 4 + … + 64 + 100 ms"
    assert metrics.peak_open <= 2


@pytest.mark.usefixtures("clock")
async def test_a_refused_client_of_an_open_loop_does_not_wait() -> None:
    metrics = await run(refused_endpoint(), rate=1000, duration=0.2, connections=1)
    assert metrics.unstarted == 0
    assert metrics.attempted == 200, "with a rest, 2 in the first 3 ms, 7 in 0.2 s"


@pytest.mark.usefixtures("clock")
async def test_a_greeting_resets_the_wait_of_a_refused_client() -> None:
    """Alternately refused and greeted, with a clock that advances to what is due."""
    real, number = Target.open, itertools.count()

    def every_other(self: Target) -> Any:
        if next(number) % 2:
            raise OSError(errno.EMFILE, "injected")
        return real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Target, "open", every_other)
        async with serving(greet) as target:
            metrics = await run(target, count=40, connections=1)
    assert outcomes(metrics) == {GREETED: 20, "local_exhausted": 20}
    assert metrics.elapsed == pytest.approx(0.019, abs=0.002), "always 1 ms"


async def test_what_is_overdue_at_the_end_of_a_short_schedule_is_started_if_there_are_slots() -> None:
    async def hiccup() -> None:
        time.sleep(0.06)  # noqa: ASYNC251  # the loop is to stand still

    async with serving(greet) as target:
        plan = LoadPlan(target, rate=100, duration=0.05)
        worker = Engine(plan, await resolve(plan))
        running = asyncio.create_task(worker.run())
        await asyncio.sleep(0)
        await hiccup()
        metrics = await running
    assert metrics.attempted + metrics.unstarted == 5
    assert metrics.unstarted == metrics.unstarted_with_free_slots == 0 or metrics.elapsed >= 0.15
    assert metrics.scheduled >= 0.06 or metrics.lag.total == 5


@pytest.mark.usefixtures("clock")
async def test_unstarted_connections_are_not_those_of_the_generator_if_there_was_no_slot() -> None:
    async with serving(greet_and_stay) as target:
        metrics = await run(target, rate=100, duration=0.2, connections=5, until="line", hold=60.0)
    assert metrics.unstarted == 15
    assert metrics.unstarted_with_free_slots == 0


async def test_unstarted_connections_are_those_of_the_generator_if_there_were_slots() -> None:
    metrics = await run(refused_endpoint(), rate=300_000, duration=0.2)
    assert metrics.unstarted_with_free_slots == metrics.unstarted > 1000


async def test_a_generator_that_does_not_run_is_noticed_by_its_own_clock() -> None:
    async with serving(greet_and_stay) as target:
        plan = LoadPlan(target, connections=2, duration=1.2, until="line", hold=60.0)
        worker = Engine(plan, await resolve(plan))
        running = asyncio.create_task(worker.run())
        await until(lambda: outcomes(worker.metrics) == {GREETED: 2}, "all connections are held")
        time.sleep(0.7)  # noqa: ASYNC251  # the loop is to stand still
        metrics = await running
    assert 0.4 <= metrics.stopped < 5


class NoPorts(socket.socket):
    def connect_ex(self, _: Any) -> int:
        return errno.EADDRNOTAVAIL


async def test_running_out_of_ports_is_local_exhausted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "open", lambda _: NoPorts())
    began = time.monotonic()
    metrics = await run("127.0.0.1:9", count=10, connections=2)
    assert outcomes(metrics) == {"local_exhausted": 10}
    assert time.monotonic() - began >= 0.015, "a closed loop waits 1, 2, 4 and 8 ms between attempts"


@pytest.mark.usefixtures("clock")
async def test_an_open_loop_that_runs_out_of_ports_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "open", lambda _: NoPorts())
    metrics = await run("127.0.0.1:9", count=10, rate=10_000)
    assert outcomes(metrics) == {"local_exhausted": 10}
    assert metrics.unstarted == 0


@pytest.mark.usefixtures("poller_kind")
async def test_hold_keeps_connections_open() -> None:
    async with serving(greet_and_stay) as target:
        began = time.monotonic()
        metrics = await run(target, count=50, connections=50, until="line", hold=0.3)
        rest = time.monotonic() - began - 0.3
    assert outcomes(metrics) == {GREETED: 50}
    assert metrics.peak_open == 50
    assert metrics.closed_while_held == 0
    fastest = metrics.response.percentiles(0)[0] or 0
    assert rest > 0
    assert fastest <= 1.001 * 1e6 * rest, "the time of the hold is not latency"


@pytest.mark.usefixtures("poller_kind")
async def test_a_server_may_close_held_connections() -> None:
    async def brief(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\r\n250 and some more\r\n")
        await asyncio.sleep(0.05)

    async with serving(brief) as target:
        began = time.monotonic()
        metrics = await run(target, count=10, connections=10, until="line", hold=60.0)
    assert outcomes(metrics) == {GREETED: 10}
    assert metrics.closed_while_held == 10
    assert time.monotonic() - began < 60.0


def end(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


def end_and_reset(sock: socket.socket) -> None:
    end(sock)
    reset(sock)


@pytest.mark.parametrize(
    ("close", "until"), [(end, "line"), (end, "bytes:5"), (reset, "line"), (end_and_reset, "eof")]
)
async def test_a_server_may_close_with_the_greeting(
    close: Callable[[socket.socket], None], until: str
) -> None:
    """The end of the greeting and that of the connection are one event, and no other follows."""
    with never_accepting(backlog=100) as (listener, target):

        def serve_one() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.sendall(b"220 ready\r\n")
                close(sock)

        asyncio.get_running_loop().add_reader(listener, serve_one)
        began = time.monotonic()
        metrics = await run(target, count=10, connections=10, until=until, expect="220", hold=60.0)
        asyncio.get_running_loop().remove_reader(listener)
    assert outcomes(metrics) == {GREETED: 10}
    assert metrics.closed_while_held == 10
    assert time.monotonic() - began < 60.0


@pytest.mark.usefixtures("poller_kind")
async def test_a_connection_closed_by_the_server_is_held() -> None:
    async with serving(greet) as target:
        began = time.monotonic()
        metrics = await run(target, count=5, connections=5, hold=0.2)
    assert outcomes(metrics) == {GREETED: 5}
    assert metrics.closed_while_held == 0
    assert time.monotonic() - began >= 0.2


class Echoing(EpollPoller):
    """Reports each event twice, as epoll does if the end of the stream arrives while data is reported."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._last: list[tuple[int, int]] = []
        poll = self.poll

        def twice() -> list[tuple[int, int]]:
            now = poll()
            events, self._last = self._last + now, now
            return events

        self.poll = twice


async def test_an_end_that_is_reported_twice_does_not_end_the_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "new_poller", Echoing)
    async with serving(greet) as target:
        began = time.monotonic()
        metrics = await run(target, count=20, connections=20, hold=0.6)
    assert outcomes(metrics) == {GREETED: 20}
    assert metrics.peak_open == 20
    assert metrics.closed_while_held == 0
    assert time.monotonic() - began >= 0.6


async def test_a_reset_after_the_end_ends_the_hold() -> None:
    async def end_and_reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        writer.write_eof()
        await asyncio.sleep(0.05)
        abort_with_reset(writer)

    async with serving(end_and_reset) as target:
        began = time.monotonic()
        metrics = await run(target, count=10, connections=10, hold=60.0)
    assert outcomes(metrics) == {GREETED: 10}
    assert metrics.closed_while_held == 10
    assert time.monotonic() - began < 60.0


async def test_the_end_of_the_duration_ends_the_hold(clock: Clock) -> None:
    async def slow(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await clock.sleep(0.15)
        writer.write(GREETING)

    for handler, end in ((greet, 0.1), (slow, 0.15)):  # one greets within the duration, one after it
        async with serving(handler) as target:
            began = clock.now
            metrics = await run(target, connections=5, duration=0.1, hold=60.0)
        assert outcomes(metrics) == {GREETED: 5}
        assert metrics.closed_while_held == 0
        assert clock.now - began == pytest.approx(end, abs=1e-6)


@pytest.mark.parametrize(
    "load",
    [
        {"connections": 5, "count": 5, "duration": 0.2},  # all start long before the end
        {"rate": 100, "duration": 0.2},
        {"stages": [Stage(0.2, 200)]},
        {"rate": 100, "duration": 0.2, "connections": 5},  # the others wait for a slot in vain
    ],
)
async def test_the_end_of_the_duration_ends_the_hold_in_both_loops(
    load: dict[str, Any], clock: Clock
) -> None:
    async with serving(greet_and_stay) as target:
        began = clock.now
        metrics = await run(target, until="line", hold=60.0, **load)
    assert clock.now - began <= 0.2 + LATE_TOLERANCE + 1e-6
    due = 5 if "count" in load else 20
    attempted = 5 if "connections" in load else 20  # the end of the duration does not start a burst
    assert outcomes(metrics) == {GREETED: attempted}
    assert metrics.closed_while_held == 0
    assert metrics.attempted + metrics.unstarted == due


async def test_a_connection_that_waits_at_the_end_of_the_duration_has_its_timeout(clock: Clock) -> None:
    clock.settled = connected
    with never_accepting(backlog=100) as (_, target):
        metrics = await run(target, rate=100, duration=0.1, hold=60.0, timeout=0.3)
    assert outcomes(metrics) == {"connected_no_greeting": 10}
    assert (metrics.failed.percentiles(0)[0] or 0) >= 300_000


async def test_without_a_duration_hold_is_not_shortened(clock: Clock) -> None:
    async with serving(greet_and_stay) as target:
        began = clock.now
        metrics = await run(target, rate=1000, count=30, connections=100, until="line", hold=0.5)
    assert outcomes(metrics) == {GREETED: 30}
    assert metrics.peak_open == 30
    assert clock.now - began == pytest.approx(0.529, abs=1e-6)


async def test_the_slot_of_a_held_connection_is_reused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    free: list[int] = []  # at the end of each wake-up with connections to start
    real = Engine._run_once

    def run_once(self: Engine) -> None:
        real(self)
        if not self._schedule_done and self._started:
            free.append(self._free_slots)

    monkeypatch.setattr(Engine, "_run_once", run_once)
    async with serving(greet_and_stay) as target:
        metrics = await run(target, connections=1, count=5, until="line", hold=0.02)
    assert outcomes(metrics) == {GREETED: 5}
    assert set(free) == {0}


@pytest.mark.parametrize("outcome", ["connect_timeout", "connected_no_greeting"])
async def test_each_connection_has_its_own_deadline(
    outcome: str, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    clock.settled = connected if outcome == "connected_no_greeting" else lambda _: True
    real = Engine._run_once

    def run_once(self: Engine) -> None:
        real(self)
        # A connection that starts just after a check of the deadlines is not missed by the next check.
        assert self._check_at <= earliest_start(self._waiting) + self._timeout
        assert self._check_at <= earliest_start(self._connecting) + self._connect_timeout

    monkeypatch.setattr(Engine, "_run_once", run_once)
    timeouts = {"connect_timeout": 0.1, "timeout": 5.0}
    if outcome == "connected_no_greeting":
        timeouts = {"connect_timeout": 5.0, "timeout": 0.1}
    length = 0 if outcome == "connect_timeout" else 100
    with (
        never_accepting(length) as (listener, target),
        socket.create_connection(listener.getsockname()),  # now a queue with a backlog of 0 is full
    ):
        metrics = await run(target, rate=50, duration=0.3, **timeouts)
    assert outcomes(metrics) == {outcome: 15}
    assert metrics.failed.percentiles(0, 100) == pytest.approx([100_000] * 2, rel=0.001)


async def test_connections_open_at_the_end_of_the_duration_are_completed(clock: Clock) -> None:
    async def slow(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await clock.sleep(0.1)
        writer.write(GREETING)

    async with serving(slow) as target:
        metrics = await run(target, connections=4, duration=0.15)
    assert outcomes(metrics) == {GREETED: 8}
    assert metrics.scheduled == pytest.approx(0.15, abs=1e-6)
    assert metrics.elapsed == pytest.approx(0.2, abs=1e-6)
    assert metrics.cut_off == 0


async def test_waiting_for_the_last_connection_counts_as_idle_in_a_closed_loop() -> None:
    with never_accepting(backlog=100) as (_, target):
        metrics = await run(target, count=20, connections=20, timeout=1.0)
    (busy,) = metrics.cpu_percent
    assert metrics.outcomes["connected_no_greeting"] == 20
    assert 0 < busy < 90, "all start at once, and then the engine waits for a second"


async def test_the_share_of_a_core_is_at_most_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the CPU and that of the run are two, and a run of milliseconds shows their difference."""
    monkeypatch.setattr(engine, "thread_time", itertools.count(0.0, 3600.0).__next__)
    metrics = await run(refused_endpoint(), count=200, connections=200)  # one or two iterations of the loop
    assert metrics.cpu_percent == [100.0]


@pytest.mark.usefixtures("clock")
async def test_the_warm_up_is_not_counted() -> None:
    served = 0

    async def count(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        served += 1
        writer.write(GREETING)

    async with serving(count) as target:
        metrics = await run(target, rate=200, count=40, warmup=0.25)
    assert outcomes(metrics) == {GREETED: 40}
    assert served == 40 + 50
    assert metrics.lag.total == 40
    assert sum(row["attempted"] for row in metrics.timeline.rows()) == 40


async def test_the_warm_up_of_a_closed_loop_is_not_counted(clock: Clock) -> None:
    served = 0

    async def count(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        served += 1
        await clock.sleep(0.015)
        writer.write(GREETING)

    async with serving(count) as target:
        metrics = await run(target, connections=3, duration=0.1, warmup=0.1)
    assert outcomes(metrics) == {GREETED: 3 * 7}
    assert served == 3 * 7 + 3 * 7, "7 start within 0.1 s"


@pytest.mark.usefixtures("poller_kind")
async def test_an_open_loop_follows_the_real_clock() -> None:
    async with serving(greet) as target:
        metrics = await run(target, rate=200, duration=0.3)
    assert metrics.outcomes[GREETED] == metrics.attempted
    assert metrics.attempted + metrics.unstarted == 60, "fewer only if the machine is busy at the end"
    assert metrics.elapsed >= metrics.scheduled >= 0.3
    assert metrics.lag.total == metrics.attempted


async def test_an_open_loop_keeps_its_schedule(clock: Clock) -> None:
    begun: list[float] = []

    async def note(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun.append(clock.now)
        writer.write(GREETING)

    async with serving(note) as target:
        began = clock.now
        metrics = await run(target, rate=200, duration=0.3)
    assert outcomes(metrics) == {GREETED: 60}
    assert [moment - began for moment in begun] == pytest.approx([k / 200 for k in range(60)], abs=1e-6)
    assert metrics.scheduled == 0.3
    assert (metrics.lag.percentiles(100)[0] or 0) <= 1


async def test_without_a_free_slot_arrivals_wait_and_count_from_their_intended_start(clock: Clock) -> None:
    async def slow(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await clock.sleep(0.05)
        writer.write(GREETING)

    async with serving(slow) as target:
        metrics = await run(target, rate=80, duration=0.4, connections=2)
    # Two at a time, 0.05 s each: 40 per second of the 80 that are due, and one more at the end.
    assert metrics.attempted + metrics.unstarted == 32
    assert metrics.attempted == 17
    service, response = metrics.service.percentiles(0, 100), metrics.response.percentiles(50, 100)
    assert service == pytest.approx([50_000, 50_000], rel=0.001)
    last = (0.45 - 16 / 80) * 1e6  # it waited for half of the run
    assert response[1] == pytest.approx(last, rel=0.001)
    assert (metrics.lag.percentiles(100)[0] or 0) <= 1, "a missing slot is not lag of the generator"


@pytest.mark.usefixtures("clock")
async def test_stages_are_carried_out() -> None:
    async with serving(greet) as target:
        metrics = await run(target, rate=100, stages=[Stage(0.2, 100), Stage(0.2, 0)])
    assert outcomes(metrics) == {GREETED: 30}
    assert metrics.scheduled == pytest.approx(0.4)


async def test_stop_gives_the_figures_so_far() -> None:
    accepted = asyncio.Semaphore(0)

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.release()
        await wait_for_close(reader, writer)

    async with serving(hold) as target:
        plan = LoadPlan(target, rate=100, duration=60.0, timeout=60.0)
        worker = Engine(plan, await resolve(plan))
        running = asyncio.create_task(worker.run())
        for _ in range(20):
            await accepted.acquire()
        worker.stop()
        metrics = await running
    assert metrics.interrupted
    assert metrics.attempted == 0
    assert metrics.cut_off >= 20
    assert metrics.elapsed == metrics.scheduled >= 0.19
    assert metrics.cut_off + metrics.unstarted == pytest.approx(100 * metrics.scheduled, abs=1)
    assert sum(row["attempted"] for row in metrics.timeline.rows()) == 0
    worker.stop()  # may be repeated


async def test_a_start_that_is_cut_off_is_removed_from_its_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead, begun = 0.0, asyncio.Event()
    monkeypatch.setattr(engine, "monotonic", lambda: time.monotonic() + ahead)
    real = Engine._begin_due

    def later(self: Engine) -> float:
        nonlocal ahead
        if self._started and not ahead:  # a second passes between two readings of the clock
            ahead = 1.0
            begun.set()
        return real(self)

    monkeypatch.setattr(Engine, "_begin_due", later)
    with never_accepting(backlog=100) as (_, target):
        plan = LoadPlan(target, rate=2, duration=60.0, timeout=30.0)
        worker = Engine(plan, await resolve(plan))
        running = asyncio.create_task(worker.run())
        async with asyncio.timeout(PATIENCE):
            await begun.wait()
        worker.stop()
        metrics = await running
    assert metrics.cut_off >= 2
    assert {row["attempted"] for row in metrics.timeline.rows()} == {0}


async def test_cancelling_closes_all_connections_and_keeps_the_figures() -> None:
    async with serving(greet_and_stay) as target:
        plan = LoadPlan(target, connections=20, until="line", hold=30.0)
        worker = Engine(plan, await resolve(plan))
        running = asyncio.create_task(worker.run())
        await until(lambda: outcomes(worker.metrics) == {GREETED: 20}, "all connections are held")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert outcomes(worker.metrics) == {GREETED: 20}


@one_loop
@pytest.mark.parametrize(
    ("handler", "outcome", "load"),
    [
        (greet_and_stay, GREETED, {"until": "line", "hold": 5.0}),
        (greet_and_stay, GREETED, {"until": "idle:5s", "timeout": 20.0}),
        (wait_for_close, "connected_no_greeting", {"timeout": 5.0}),
    ],
)
@pytest.mark.thorough
async def test_a_wake_up_handles_a_bounded_number_of_deadlines(
    handler: Handler, outcome: str, load: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead, closed = 0.0, [0]  # the connections that each wake-up has closed
    run_once, close = Engine._run_once, Engine._close
    monkeypatch.setattr(engine, "BATCH", 4)
    monkeypatch.setattr(engine, "monotonic", lambda: time.monotonic() + ahead)

    def counting_run_once(self: Engine) -> None:
        closed.append(0)
        run_once(self)

    def counting_close(self: Engine, *args: Any) -> None:
        closed[-1] += 1
        close(self, *args)

    monkeypatch.setattr(Engine, "_run_once", counting_run_once)
    monkeypatch.setattr(Engine, "_close", counting_close)
    async with serving(handler) as target:
        plan = LoadPlan(target, connections=100, count=100, **load)
        worker = Engine(plan, await resolve(plan))
        running = asyncio.create_task(worker.run())
        opened = worker._held if "hold" in load else worker._waiting
        await until(lambda: len(opened) == 100 and not worker._connecting, "all connections are open")
        await until(
            lambda: "idle" not in str(plan.until) or len(worker._idle_until) == 100, "all are greeted"
        )
        ahead = 10.0  # all deadlines pass at once
        metrics = await running
    assert outcomes(metrics) == {outcome: 100}
    assert sum(closed) == 100
    assert max(closed) <= 4 * engine._MAX_POLLS


async def test_an_error_in_the_engine_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(Engine, "_begin_due", broken)
    with pytest.raises(RuntimeError, match="injected"):
        await run("127.0.0.1:9", count=1)


@pytest.mark.usefixtures("clock")
async def test_intervals_are_reported_as_they_end() -> None:
    reported: list[tuple[Interval, int]] = []
    async with serving(greet) as target:
        plan = LoadPlan(target, rate=100, duration=0.6, workers=2)
        worker = Engine(
            plan, await resolve(plan), 1, lambda interval, index: reported.append((interval, index))
        )
        metrics = await worker.run()
    assert [index for _, index in reported] == [1] * len(reported)
    assert [interval.begin for interval, _ in reported] == pytest.approx([n * 0.05 for n in range(12)])
    assert sum(interval.attempted for interval, _ in reported) == metrics.attempted == 30

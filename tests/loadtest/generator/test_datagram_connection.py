"""Load over datagrams: the classes of datagrams, with the engine, on every loop and with either poller."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from greeter import serve
from greeter.errors import ConfigError
from greeter.loadtest import LoadPlan, LoadReport, Threshold, load
from greeter.loadtest.generator import engine, timer
from greeter.loadtest.generator import target as target_module
from greeter.loadtest.generator.datagram_connection import DatagramConnection
from greeter.loadtest.generator.engine import Engine
from greeter.loadtest.generator.event_poller import ReaderPoller
from greeter.loadtest.generator.load_connection import ConnectionSpec
from greeter.loadtest.generator.target import Target, resolve
from greeter.loadtest.plan.outcome import GREETED
from greeter.loadtest.report.merge import merge
from greeter.loadtest.report.render import summary
from tests.conftest import PATIENCE, run_greeter
from tests.support.engine_clock import Clock, clock
from tests.support.loadtest_peers import GREETING, checked
from tests.support.peers import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from greeter.loadtest.metrics.run_metrics import RunMetrics

pytestmark = pytest.mark.usefixtures("no_fd_leak")

__all__ = ["clock"]  # a fixture


@pytest.fixture(params=["epoll", "readers"])
def poller_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the engine with epoll and timerfd, and without them."""
    if request.param == "readers":
        monkeypatch.setattr(engine, "new_poller", ReaderPoller)
        monkeypatch.setattr(timer, "_timerfd", lambda: None)


class Service:
    """Answers a datagram with those that ``answer`` returns for it, and keeps what it receives."""

    def __init__(self, sock: socket.socket, answer: Callable[[bytes], list[bytes]]) -> None:
        self.received: list[bytes] = []
        self.sock = self.answer_from = sock
        self._answer = answer
        host, port = sock.getsockname()[:2]
        self.target = f"udp:[{host}]:{port}" if ":" in host else f"udp:{host}:{port}"

    def read(self) -> None:
        """Receive a datagram and answer it."""
        data, source = self.sock.recvfrom(65536)
        self.received.append(data)
        for answer in self._answer(data):
            self.answer_from.sendto(answer, source)

    async def has_received(self, count: int) -> None:
        """Wait for what a run has sent: without a reply, it does not wait for the service."""
        await until(lambda: len(self.received) >= count, f"the service receives {count} datagrams")


@contextlib.asynccontextmanager
async def service(answer: Callable[[bytes], list[bytes]], host: str = "127.0.0.1") -> AsyncIterator[Service]:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind((host, 0))
        found = Service(sock, answer)
        loop.add_reader(sock, found.read)
        try:
            yield found
        finally:
            loop.remove_reader(sock)


async def run(target: str, **options: Any) -> RunMetrics:
    plan = LoadPlan(target, **{"count": 10, "connections": 5, **options})
    return await Engine(plan, await resolve(plan)).run()


def outcomes(metrics: RunMetrics) -> dict[str, int]:
    return {outcome: count for outcome, count in metrics.outcomes.items() if count}


@contextlib.contextmanager
def unreachable() -> Iterator[str]:
    """A port that refuses datagrams, and that nobody else gets: its socket is connected to another one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.connect(("127.0.0.9", 9))
        yield f"udp:127.0.0.1:{sock.getsockname()[1]}"


@pytest.mark.usefixtures("poller_kind", "clock")  # in an open loop, no datagram is late
@pytest.mark.parametrize("options", [{}, {"rate": 1000}])
async def test_every_datagram_that_is_answered_is_greeted(options: dict[str, Any]) -> None:
    async with service(lambda _: [GREETING, b"a second reply"]) as found:
        metrics = await run(found.target, **options)
    assert outcomes(metrics) == {GREETED: 10}
    assert [len(data) for data in found.received] == [171] * 10
    assert metrics.connect.summary()["count"] == 0  # there is no such phase
    assert metrics.response.summary()["count"] == metrics.first_byte.summary()["count"] == 10
    assert metrics.greetings.to_json() == {"texts": [{"text": GREETING.decode(), "count": 10}], "others": 0}


@pytest.mark.usefixtures("poller_kind")
@pytest.mark.parametrize(
    ("answer", "options", "outcome"),
    [
        (lambda data: [data], {"send": b"220"}, GREETED),
        (lambda data: [data], {"send": b"220", "expect": "220"}, GREETED),
        (lambda data: [data], {"send": b"421", "expect": "220"}, "unexpected_greeting"),
        (lambda _: [bytes(65_507)], {}, GREETED),
        (lambda _: [bytes(101)], {"max_bytes": 100}, "too_large"),
        (lambda _: [b""], {}, "empty"),
        (lambda _: [], {"timeout": 0.1}, "no_reply"),
    ],
)
async def test_a_datagram_ends_in_one_class(
    answer: Callable[[bytes], list[bytes]], options: dict[str, Any], outcome: str
) -> None:
    async with service(answer) as found:
        metrics = await run(found.target, connections=10, **options)
        await found.has_received(10)
    assert outcomes(metrics) == {outcome: 10}
    assert len(found.received) == 10, "each is sent once"


@pytest.mark.usefixtures("poller_kind")
async def test_a_port_that_is_unreachable_refuses_and_slots_rest() -> None:
    began = time.monotonic()
    with unreachable() as target:
        metrics = await run(target, count=40)
    assert outcomes(metrics) == {"refused": 40}
    assert time.monotonic() - began >= 0.127, "8 of each of 5 slots: 1 + 2 + 4 + … + 64 ms"
    assert metrics.reasons == {"refused": {"Connection refused": 40}}


async def test_a_reply_from_another_address_is_lost() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        async with service(lambda _: [GREETING]) as found:
            found.answer_from = other
            metrics = await run(found.target, timeout=0.1)
            await found.has_received(10)
        assert len(found.received) == 10
    assert outcomes(metrics) == {"no_reply": 10}


async def test_an_error_of_the_system_has_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(code: int) -> str | None:
        class Socket:
            def fileno(self) -> int:
                return -1

            def connect(self, _: object) -> None:
                raise OSError(code, "x")

            def close(self) -> None: ...

        plan = LoadPlan("udp:127.0.0.1:9")
        target = Target(socket.AF_INET, ("127.0.0.1", 9), datagrams=True)
        monkeypatch.setattr(target, "open", Socket)
        connection = DatagramConnection(ConnectionSpec(plan, target), 0.0, 0.0)
        outcome = connection.open()
        connection.close()
        return outcome

    assert fail(errno.ENETUNREACH) == "connect_error"
    assert fail(errno.EAGAIN) == "local_exhausted"  # no port is free


async def test_a_name_with_several_addresses_loads_the_one_that_replies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(target_module, "_REPLY_SECONDS", PATIENCE)
    async with service(lambda _: [GREETING]) as found:
        port = found.target.rpartition(":")[2]
        target = await resolve(LoadPlan(f"udp:localhost:{port}", timeout=PATIENCE))
    assert target.text == f"udp:127.0.0.1:{port}"


async def test_ipv6_and_a_source_address() -> None:
    async with service(lambda _: [GREETING], "::1") as found:
        assert outcomes(await run(found.target)) == {GREETED: 10}
    async with service(lambda _: [GREETING]) as found:
        assert outcomes(await run(found.target, source_ips=["127.0.0.7"])) == {GREETED: 10}


async def test_a_report_has_the_rate_of_what_was_lost_and_the_counters_of_udp(clock: Clock) -> None:
    clock.settled = lambda engine: len(engine._waiting) in (0, 5)  # five are answered, then time passes
    count = 0

    def every_other(_: bytes) -> list[bytes]:
        nonlocal count
        count += 1
        return [GREETING] * (count % 2)

    thresholds = [Threshold.parse("errors:lost<=50%"), Threshold.parse("rate:lost<1")]
    async with service(every_other) as found:
        plan = LoadPlan(found.target, count=10, connections=10, timeout=0.2, thresholds=thresholds)
        report = await load(plan)
    checked(report)
    assert (report.errors["no_reply"], report.connections["greeted"]) == (5, 5)
    assert (report.rate["lost"] or 0) > 1
    assert [(row["actual"], row["passed"]) for row in report.thresholds][0] == (50.0, True)
    assert not report.thresholds[1]["passed"]
    assert {"RcvbufErrors", "NoPorts"} <= set(report.kernel)
    assert "ListenOverflows" not in report.kernel
    text = summary(report)
    assert "/s lost (50%)" in text
    assert "\n  connect " not in text
    assert "a datagram without a reply" in text
    assert "a client asks only after" in text
    # What is saved can be read, merged and shown.
    saved = LoadReport.from_json(report.to_json())
    assert saved == LoadReport.from_json(saved.to_json())
    again = LoadReport.from_json(report.to_json().replace(report.started_at, "2026-01-01T00:00:00.000Z"))
    whole = merge([("a", saved), ("b", again)])
    assert (whole.errors["no_reply"], whole.connections["attempted"]) == (10, 20)
    assert whole.rate["lost"] == pytest.approx(2 * (report.rate["lost"] or 0), rel=0.01)


async def test_a_run_over_streams_has_no_rate_of_lost_datagrams() -> None:
    async with serve("Hello", port=0) as server:
        report = await load(LoadPlan(f"127.0.0.1:{server.port}", count=1))
    assert "lost" not in report.rate
    assert "NoPorts" not in report.kernel


async def test_our_own_service_in_worker_processes(tmp_path: Path) -> None:
    async with serve("Hello", listen=["udp:127.0.0.1:0"]) as server:
        target = f"udp:127.0.0.1:{server.sockets[0].getsockname()[1]}"
        file = tmp_path / "run.json"
        code, out, err = await run_greeter(
            "load", target, "-n", "200", "-w", "2", "--quiet", "--json", str(file)
        )
    assert (code, err) == (0, "")
    assert "All 200 clients were greeted" in out
    assert json.loads(file.read_text())["address"] == target


async def test_what_needs_a_stream_is_one_line_of_the_command() -> None:
    for option in (("--until", "line"), ("--tls",), ("--proxy-protocol", "v1"), ("--hold", "1")):
        line = f"greeter: {option[0]} needs a stream, and udp:h:1 is an endpoint for datagrams\n"
        assert await run_greeter("load", "udp:h:1", *option) == (2, "", line)
    with pytest.raises(ConfigError, match="^until needs a stream"):
        LoadPlan("udp:h:1", until="line")

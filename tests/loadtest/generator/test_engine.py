"""The engine against real sockets, on every loop; each server misbehaves in one known way."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import socket
import time
from math import inf
from typing import TYPE_CHECKING, Any

import pytest

from greeter.loadtest import LoadPlan, Stage
from greeter.loadtest.generator import engine, timer
from greeter.loadtest.generator.engine import Engine
from greeter.loadtest.generator.event_poller import EpollPoller, ReaderPoller
from greeter.loadtest.generator.load_connection import earliest_start
from greeter.loadtest.generator.target import Target, resolve
from greeter.loadtest.plan.outcome import GREETED
from tests.conftest import PATIENCE
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
from tests.support.peers import until

if TYPE_CHECKING:
    from pathlib import Path
    from types import MethodType

    from greeter.loadtest.metrics.run_metrics import RunMetrics
    from greeter.loadtest.metrics.timeline import Interval
    from tests.support.loadtest_peers import Handler

pytestmark = pytest.mark.usefixtures("no_fd_leak")


@pytest.fixture(params=["epoll", "readers"])
def eyes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine with epoll and timerfd, and as it is on a system without them."""
    if request.param == "readers":
        monkeypatch.setattr(engine, "new_poller", ReaderPoller)
        monkeypatch.setattr(timer, "_timerfd", lambda: None)


class Clock:
    """The engine's time, which passes at once: from one moment at which something is due to the next.

    It stands still while a connection is under way whose handler does not ``sleep`` in this time.
    """

    def __init__(self) -> None:
        self.now = time.monotonic()
        self.asleep: list[tuple[float, asyncio.Future[None]]] = []

    async def sleep(self, seconds: float) -> None:
        awake = asyncio.get_running_loop().create_future()
        self.asleep.append((self.now + seconds, awake))
        await awake


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()

    class FakeTimer:
        def __init__(self, loop: asyncio.AbstractEventLoop, callback: MethodType) -> None:
            self._loop, self._callback, self._when, self._closed = loop, callback, inf, False
            assert isinstance(callback.__self__, Engine)
            self._engine = callback.__self__
            loop.call_soon(self._look)

        def set(self, when: float) -> None:
            self._when = min(self._when, when)

        def close(self) -> None:
            self._closed = True

        def _look(self) -> None:
            """In every turn of the loop: pass on to the next moment, if nothing is under way."""
            if self._closed:
                return
            self._loop.call_soon(self._look)
            if len(clock.asleep) != len(self._engine._waiting):
                return
            clock.asleep.sort(key=lambda sleeper: sleeper[0])
            if clock.asleep and clock.asleep[0][0] <= self._when:
                clock.now, awake = clock.asleep.pop(0)
                awake.set_result(None)
            elif self._when < inf:
                # A nanosecond later, for to the digits of a float it may be before the moment that is due.
                clock.now, self._when = max(clock.now, self._when) + 1e-9, inf
                self._callback()

    monkeypatch.setattr(engine, "monotonic", lambda: clock.now)
    monkeypatch.setattr(engine, "PreciseTimer", FakeTimer)
    return clock


async def run(target: str, **options: Any) -> RunMetrics:
    options = {"timeout": 5.0, **options}
    plan = LoadPlan(target, **options)
    metrics = await Engine(plan, await resolve(plan)).run()
    assert metrics.attempted == sum(metrics.outcomes.values())
    assert metrics.failed.total == metrics.attempted - metrics.outcomes[GREETED]
    return metrics


def outcomes(metrics: RunMetrics) -> dict[str, int]:
    return {outcome: count for outcome, count in metrics.outcomes.items() if count}


async def pieces(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for byte in GREETING:
        writer.write(bytes((byte,)))
        await writer.drain()
        await asyncio.sleep(0)


async def talkative(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hi there\n" + bytes(500) + b"SECOND\n")
    await reader.read()


async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(GREETING)
    await reader.read()


async def reset_at_once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    abort_with_reset(writer)


async def reset_behind(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(GREETING)
    await asyncio.sleep(0.02)
    abort_with_reset(writer)


async def megabyte(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(bytes(1_000_000))
    await writer.drain()


@pytest.mark.usefixtures("eyes")
@pytest.mark.parametrize(
    ("handler", "options", "outcome"),
    [
        (greet, {}, GREETED),
        (greet, {"expect": "you for"}, GREETED),
        (pieces, {"expect": "Thank you for connecting"}, GREETED),
        (greet_and_stay, {"until": "line", "expect": "220 "}, GREETED),
        (talkative, {"until": "line", "max_bytes": 100}, GREETED),
        (talkative, {"until": "line", "max_bytes": 9, "expect": "hi there"}, GREETED),
        (talkative, {"until": "line", "max_bytes": 8}, "too_large"),
        (talkative, {"until": "line", "expect": "SECOND"}, "unexpected_greeting"),
        (megabyte, {"max_bytes": 1_000_000}, GREETED),
        (greet, {"until": "line"}, GREETED),  # the end of the stream ends a line too
        (close_at_once, {}, "empty"),
        (greet, {"expect": "Hello"}, "unexpected_greeting"),
        (greet_and_stay, {"until": "line", "expect": "Hello"}, "unexpected_greeting"),
        (megabyte, {"max_bytes": 999_999}, "too_large"),
        (wait_for_close, {"timeout": 0.05}, "connected_no_greeting"),
        (stall, {"timeout": 0.05}, "greeting_timeout"),
        (stall, {"until": "line", "timeout": 0.05}, "greeting_timeout"),
        (reset_at_once, {}, "reset"),
        (reset_behind, {}, "reset"),
        (reset_behind, {"expect": "connecting"}, GREETED),
        (reset_behind, {"expect": "Hello"}, "reset"),
    ],
)
async def test_every_connection_ends_in_its_class(
    handler: Handler, options: dict[str, Any], outcome: str
) -> None:
    async with serving(handler) as target:
        metrics = await run(target, count=20, connections=20, **options)
    assert outcomes(metrics) == {outcome: 20}
    assert metrics.connect.total == 20
    assert metrics.reset_after_greeting == (20 if handler is reset_behind and outcome == GREETED else 0)
    answered = outcome in (GREETED, "empty", "unexpected_greeting")
    assert metrics.service.total == metrics.response.total == 20 * answered
    assert metrics.first_byte.total == 20 * (answered and outcome != "empty")


@pytest.mark.usefixtures("eyes")
async def test_nobody_listens() -> None:
    metrics = await run(refused_endpoint(), count=20)
    assert outcomes(metrics) == {"connect_refused": 20}
    assert metrics.connect.total == 0
    assert metrics.reasons == {"connect_refused": {"Connection refused": 20}}


async def test_a_queue_that_nobody_accepts_from() -> None:
    with never_accepting(backlog=3) as (_, target):
        metrics = await run(target, count=12, connections=12, timeout=0.3, connect_timeout=0.15)
    found = outcomes(metrics)
    assert GREETED not in found
    # The queue takes one more than its length; those in it are connected as far as they can know.
    assert found["connected_no_greeting"] >= 4
    assert set(found) <= {"connected_no_greeting", "connect_timeout"}
    assert metrics.connect.total == found["connected_no_greeting"]


@pytest.mark.usefixtures("eyes")
async def test_a_unix_socket(tmp_path: Path) -> None:
    async with serving(greet, path=str(tmp_path / "s")) as target:
        assert outcomes(await run(target, count=30, connections=7)) == {GREETED: 30}
    async with serving(greet, path=f"\0greeter-load-{os.getpid()}") as target:
        assert target.startswith("unix:@")
        assert outcomes(await run(target, count=30, connections=7)) == {GREETED: 30}
    metrics = await run(f"unix:{tmp_path}/none", count=2)
    assert outcomes(metrics) == {"connect_error": 2}
    assert metrics.reasons == {"connect_error": {"No such file or directory": 2}}


@pytest.mark.usefixtures("eyes")
async def test_a_unix_queue_that_is_full_is_waited_for(tmp_path: Path) -> None:
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
    with never_accepting(path=str(tmp_path / "t")) as (_, target):
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
async def test_running_out_is_this_machines_doing(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, turn = Target.open, itertools.count()

    def every_other(self: Target) -> Any:
        if next(turn) % 2:
            raise OSError(code, "injected")
        return real(self)

    monkeypatch.setattr(Target, "open", every_other)
    async with serving(greet) as target:
        metrics = await run(target, count=20, connections=2)
    assert outcomes(metrics) == {GREETED: 10, "local_exhausted": 10}


async def test_out_of_ports_is_this_machines_doing(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoPorts(socket.socket):
        def connect_ex(self, _: Any) -> int:
            return errno.EADDRNOTAVAIL

    monkeypatch.setattr(Target, "open", lambda _: NoPorts())
    began = time.monotonic()
    metrics = await run("127.0.0.1:9", count=10, connections=10)
    assert outcomes(metrics) == {"local_exhausted": 10}
    assert time.monotonic() - began >= 0.09, "a closed loop waits between attempts"
    metrics = await run("127.0.0.1:9", count=10, rate=10_000)
    assert outcomes(metrics) == {"local_exhausted": metrics.attempted}
    assert metrics.attempted + metrics.unstarted == 10


@pytest.mark.usefixtures("eyes")
async def test_hold_keeps_them_open_together() -> None:
    async with serving(greet_and_stay) as target:
        metrics = await run(target, count=50, connections=50, until="line", hold=0.3)
    assert outcomes(metrics) == {GREETED: 50}
    assert metrics.peak_open == 50
    assert metrics.closed_while_held == 0
    assert (metrics.response.percentiles(0)[0] or 0) < 300_000, "the time that it is held is not the server's"


@pytest.mark.usefixtures("eyes")
async def test_a_server_may_close_what_is_held() -> None:
    async def brief(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\r\n250 and some more\r\n")
        await asyncio.sleep(0.05)

    async with serving(brief) as target:
        began = time.monotonic()
        metrics = await run(target, count=10, connections=10, until="line", hold=60.0)
    assert outcomes(metrics) == {GREETED: 10}
    assert metrics.closed_while_held == 10
    assert time.monotonic() - began < 60.0


@pytest.mark.usefixtures("eyes")
async def test_what_has_ended_is_held_too() -> None:
    async with serving(greet) as target:
        began = time.monotonic()
        metrics = await run(target, count=5, connections=5, hold=0.2)
    assert outcomes(metrics) == {GREETED: 5}
    assert metrics.closed_while_held == 0
    assert time.monotonic() - began >= 0.2


class Echoing(EpollPoller):
    """Reports everything twice, as epoll does when the end of a stream arrives while it tells of the data."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._last: list[tuple[int, int]] = []
        poll = self.poll

        def twice() -> list[tuple[int, int]]:
            now = poll()
            events, self._last = self._last + now, now
            return events

        self.poll = twice


async def test_an_end_that_is_told_of_twice_lets_nobody_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "new_poller", Echoing)
    async with serving(greet) as target:
        began = time.monotonic()
        metrics = await run(target, count=20, connections=20, hold=0.6)
    assert outcomes(metrics) == {GREETED: 20}
    assert metrics.peak_open == 20
    assert metrics.closed_while_held == 0
    assert time.monotonic() - began >= 0.6


async def test_who_is_reset_behind_his_end_is_no_longer_held() -> None:
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


async def test_when_the_time_is_over_nobody_is_held_any_longer() -> None:
    async def slow(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.15)
        writer.write(GREETING)

    for handler in (greet, slow):  # one greets within the time, one behind it
        async with serving(handler) as target:
            began = time.monotonic()
            metrics = await run(target, connections=5, duration=0.1, hold=60.0)
        assert outcomes(metrics) == {GREETED: 5}
        assert metrics.closed_while_held == 0
        assert time.monotonic() - began < 60.0


@pytest.mark.parametrize(
    "load",
    [
        {"connections": 5, "count": 5, "duration": 0.2},  # all have begun long before the end
        {"rate": 100, "duration": 0.2},
        {"stages": [Stage(0.2, 200)]},
        {"rate": 100, "duration": 0.2, "connections": 5},  # the others wait for a place, and get none
    ],
)
async def test_at_the_end_of_the_time_nobody_is_held_in_either_loop(load: dict[str, Any]) -> None:
    async with serving(greet_and_stay) as target:
        began = time.monotonic()
        metrics = await run(target, until="line", hold=60.0, **load)
        assert time.monotonic() - began < 60.0
    assert outcomes(metrics) == {GREETED: metrics.attempted}
    assert metrics.closed_while_held == 0
    due = 5 if "count" in load else 20
    assert metrics.attempted + metrics.unstarted == due
    if "connections" in load:
        assert metrics.attempted == 5, "the end of the time is no place for a burst"


async def test_who_waits_for_his_greeting_at_the_end_of_the_time_has_his_timeout() -> None:
    with never_accepting(backlog=100) as (_, target):
        metrics = await run(target, rate=100, duration=0.1, hold=60.0, timeout=0.3)
    assert outcomes(metrics) == {"connected_no_greeting": metrics.attempted}
    assert (metrics.failed.percentiles(0)[0] or 0) >= 300_000


async def test_without_a_duration_they_are_held_for_as_long_as_was_asked_for() -> None:
    async with serving(greet_and_stay) as target:
        began = time.monotonic()
        metrics = await run(target, rate=1000, count=30, connections=100, until="line", hold=0.5)
    assert outcomes(metrics) == {GREETED: metrics.attempted}
    assert metrics.attempted + metrics.unstarted == 30
    assert metrics.peak_open == metrics.attempted
    assert time.monotonic() - began >= 0.5


async def test_a_place_that_a_held_one_leaves_is_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    free: list[int] = []  # at the end of each turn, while there was somebody to begin
    real = Engine._run_once

    def turn(self: Engine) -> None:
        real(self)
        if not self._schedule_done and self._started:
            free.append(self._free_slots)

    monkeypatch.setattr(Engine, "_run_once", turn)
    async with serving(greet_and_stay) as target:
        metrics = await run(target, connections=1, count=5, until="line", hold=0.02)
    assert outcomes(metrics) == {GREETED: 5}
    assert set(free) == {0}


@pytest.mark.parametrize("outcome", ["connect_timeout", "connected_no_greeting"])
async def test_each_has_a_deadline_of_its_own(outcome: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Engine._run_once

    def turn(self: Engine) -> None:
        real(self)
        # Whoever begins just behind a look at the deadlines is not left until the next but one.
        assert self._check_at <= earliest_start(self._waiting) + self._timeout
        assert self._check_at <= earliest_start(self._connecting) + self._connect_timeout

    monkeypatch.setattr(Engine, "_run_once", turn)
    timeouts = {"connect_timeout": 0.1, "timeout": 5.0}
    if outcome == "connected_no_greeting":
        timeouts = {"connect_timeout": 5.0, "timeout": 0.1}
    length = 0 if outcome == "connect_timeout" else 100
    with (
        never_accepting(length) as (listener, target),
        socket.create_connection(listener.getsockname()),  # now a queue of no length is full
    ):
        metrics = await run(target, rate=50, duration=0.3, **timeouts)
    assert outcomes(metrics) == {outcome: metrics.attempted}
    assert (metrics.failed.percentiles(0)[0] or 0) >= 100_000


async def test_a_duration_ends_it_and_whoever_has_begun_is_followed_to_the_end() -> None:
    async def slow(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
        writer.write(GREETING)

    async with serving(slow) as target:
        metrics = await run(target, connections=4, duration=0.15)
    assert outcomes(metrics) == {GREETED: metrics.attempted}
    assert 4 <= metrics.attempted <= 8
    assert 0.15 <= metrics.scheduled <= metrics.elapsed
    assert metrics.cut_off == 0


async def test_a_closed_loop_that_waits_for_the_last_was_not_busy_meanwhile() -> None:
    with never_accepting(backlog=100) as (_, target):
        metrics = await run(target, count=20, connections=20, timeout=1.0)
    (busy,) = metrics.cpu_percent
    assert metrics.outcomes["connected_no_greeting"] == 20
    assert 0 < busy < 90, "they began in a moment at full speed, and then there was a second of silence"


async def test_nobody_uses_more_than_a_core() -> None:
    for _ in range(20):  # each is over in a turn or two of the loop
        metrics = await run(refused_endpoint(), count=200, connections=200)
        assert 0 < metrics.cpu_percent[0] <= 101  # two clocks, read one after the other


@pytest.mark.usefixtures("clock")
async def test_the_warm_up_is_left_out() -> None:
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


async def test_the_warm_up_of_a_closed_loop_is_left_out() -> None:
    served = 0

    async def count(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        served += 1
        writer.write(GREETING)

    async with serving(count) as target:
        metrics = await run(target, connections=3, duration=0.1, warmup=0.1)
    assert 0 < metrics.attempted < served


@pytest.mark.usefixtures("eyes")
async def test_an_open_loop_follows_the_clock() -> None:
    async with serving(greet) as target:
        metrics = await run(target, rate=200, duration=0.3)
    assert outcomes(metrics) == {GREETED: metrics.attempted}
    assert metrics.attempted + metrics.unstarted == 60, "fewer only on a machine that is busy at the very end"
    assert metrics.scheduled == 0.3
    assert metrics.elapsed >= 0.3
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
    assert (metrics.lag.percentiles(100)[0] or 0) <= 1


async def test_without_a_free_slot_arrivals_wait_and_are_timed_from_when_they_were_due(clock: Clock) -> None:
    async def slow(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await clock.sleep(0.05)
        writer.write(GREETING)

    async with serving(slow) as target:
        metrics = await run(target, rate=80, duration=0.4, connections=2)
    # Two at a time, a twentieth of a second each: 40 a second of the 80 that are due, and one at the end.
    assert metrics.attempted + metrics.unstarted == 32
    assert metrics.attempted == 17
    service, response = metrics.service.percentiles(0, 100), metrics.response.percentiles(50, 100)
    assert service == pytest.approx([50_000, 50_000], rel=0.001)
    last = (0.45 - 16 / 80) * 1e6  # it waited for half of the run
    assert response[1] == pytest.approx(last, rel=0.001)
    assert (metrics.lag.percentiles(100)[0] or 0) <= 1, "which is not the generator's doing"


@pytest.mark.usefixtures("clock")
async def test_stages_are_followed() -> None:
    async with serving(greet) as target:
        metrics = await run(target, rate=100, stages=[Stage(0.2, 100), Stage(0.2, 0)])
    assert outcomes(metrics) == {GREETED: 30}
    assert metrics.scheduled == pytest.approx(0.4)


async def test_stop_gives_the_figures_so_far() -> None:
    came = asyncio.Semaphore(0)

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.release()
        await wait_for_close(reader, writer)

    async with serving(hold) as target:
        plan = LoadPlan(target, rate=100, duration=60.0, timeout=60.0)
        worker = Engine(plan, await resolve(plan))
        running = asyncio.create_task(worker.run())
        for _ in range(20):
            await came.acquire()
        worker.stop()
        metrics = await running
    assert metrics.interrupted
    assert metrics.attempted == 0
    assert metrics.cut_off >= 20
    assert metrics.elapsed == metrics.scheduled >= 0.19
    assert metrics.cut_off + metrics.unstarted == pytest.approx(100 * metrics.scheduled, abs=1)
    assert sum(row["attempted"] for row in metrics.timeline.rows()) == 0
    worker.stop()  # once more is no harm


async def test_a_start_is_taken_back_where_it_was_counted(monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_cancelling_leaves_nothing_open_and_keeps_the_figures() -> None:
    async with serving(greet_and_stay) as target:
        plan = LoadPlan(target, connections=20, until="line", hold=30.0)
        worker = Engine(plan, await resolve(plan))
        running = asyncio.create_task(worker.run())
        await until(lambda: outcomes(worker.metrics) == {GREETED: 20}, "all are held")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert outcomes(worker.metrics) == {GREETED: 20}


async def test_an_error_of_the_engine_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(Engine, "_begin_due", broken)
    with pytest.raises(RuntimeError, match="injected"):
        await run("127.0.0.1:9", count=1)


@pytest.mark.usefixtures("clock")
async def test_intervals_are_told_as_they_end() -> None:
    told: list[tuple[Interval, int]] = []
    async with serving(greet) as target:
        plan = LoadPlan(target, rate=100, duration=0.6, workers=2)
        worker = Engine(plan, await resolve(plan), 1, lambda interval, index: told.append((interval, index)))
        metrics = await worker.run()
    assert [index for _, index in told] == [1] * len(told)
    assert [interval.begin for interval, _ in told] == [0.0, 0.25, 0.5]
    assert sum(interval.attempted for interval, _ in told) == metrics.attempted == 30

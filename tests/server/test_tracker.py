"""The connection tracker in virtual time: states, deadlines, counters, log lines and capacity."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from greeter.core.address import format_peer
from greeter.core.admission import Admission, Limits, trusted_proxies
from greeter.core.greeting import Greeting
from greeter.core.server_config import ServerConfig
from greeter.core.stats import ACCEPTED
from greeter.errors import GreetingError
from greeter.server.accept_pause import LOG_INTERVAL, RETRY_SECONDS
from greeter.server.connection import Connection, State
from greeter.server.conversation import Conversation
from greeter.server.lingering import FIRST_CHECK_DELAY
from greeter.server.timeouts import PAUSE_SECONDS, TIMER_SLACK
from greeter.server.tracker import (
    CHECK_SECONDS,
    LAST_READ_SECONDS,
    ConnectionTracker,
)
from tests.conftest import PATIENCE
from tests.server.test_lingering import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Callable

    from greeter.core.stats import ServerStats

CLIENT = ("192.0.2.7", 3747)
PROXIES = trusted_proxies(["127.0.0.0/8"])
GREET, LINGER = 10.0, 2.0
# By when a deadline is enforced, where the timer was set for an earlier one.
SLACK = 2 * TIMER_SLACK


class StubConnection(Connection):
    """A connection of no path. Only what the tracker itself calls does something.

    ``closes_later``: its path reports it closed some time after ``abort``. ``on_last_try``: what ``last_try``
    does and returns.
    """

    def __init__(
        self,
        tracker: ConnectionTracker,
        address: Any = CLIENT,
        *,
        closes_later: bool = False,
        on_last_try: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__(address, socket.AF_INET, "127.0.0.1:9999", tracker.stats.accepted)
        self.tracker = tracker
        self.aborted = self.watched = self.tries = 0
        self.on_last_try = on_last_try
        self._closes_later = closes_later

    async def receive(self, size: int) -> bytes:
        raise NotImplementedError

    async def send(self, data: bytes | memoryview, *, last: bool = False) -> None:
        raise NotImplementedError

    async def result_of(self, work: asyncio.Future[bytes]) -> bytes:
        raise NotImplementedError

    async def half_close(self) -> None:
        raise NotImplementedError

    async def linger(self) -> None:
        raise NotImplementedError

    def abort(self) -> None:
        self.aborted += 1
        if not self._closes_later:
            self.close()

    def watch_for_reset(self) -> None:
        self.watched += 1

    def last_try(self) -> bool:
        self.tries += 1
        return self.on_last_try()

    def close(self) -> None:
        self.tracker.closed(self)

    def begin_linger(self) -> None:
        """The greeting was made and sent."""
        self.state = State.GREETING
        self.tracker.start_linger(self)


def configuration(**options: Any) -> ServerConfig:
    timeouts = {"greet_timeout": GREET, "linger_timeout": LINGER}
    return ServerConfig(**{"greeting": Greeting("Hello"), "access_log": False, **timeouts, **options})


# A configuration of tests in real time.
PATIENT = configuration(greet_timeout=PATIENCE, linger_timeout=PATIENCE)


class Harness:
    """A tracker in virtual time, and what it told its accept path."""

    def __init__(
        self, *, capacity: int = 1_000_000, resume: Callable[[], None] | None = None, **options: Any
    ) -> None:
        self.loop = VirtualLoop()
        self.told: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio, "get_running_loop", lambda: self.loop)
            self.tracker = ConnectionTracker(
                configuration(**options),
                max_capacity=capacity,
                pause=lambda: self.told.append("pause"),
                resume=resume or (lambda: self.told.append("resume")),
            )

    @property
    def stats(self) -> ServerStats:
        return self.tracker.stats

    @property
    def admission(self) -> Admission:
        assert self.tracker.admission is not None
        return self.tracker.admission

    @property
    def failed(self) -> dict[str, int]:
        """The counters of failures that are not 0."""
        return {why: count for why, count in self.stats.failed.items() if count}

    def accept(self, **options: Any) -> StubConnection:
        """Returns a connection that was accepted."""
        connection = StubConnection(self.tracker, **options)
        assert self.tracker.accepted(connection.address, connection.key)
        return connection

    def start(self, **options: Any) -> StubConnection:
        """Returns a connection that was accepted, and whose greet deadline runs."""
        connection = self.accept(**options)
        self.tracker.start(connection)
        return connection

    def linger(self, **options: Any) -> StubConnection:
        """Returns a connection that was greeted."""
        connection = self.start(**options)
        self.greet(connection)
        return connection

    def greet(self, connection: StubConnection) -> None:
        self.tracker.mark_greeted(connection, 5)
        connection.begin_linger()


@pytest.fixture
def harness() -> Harness:
    return Harness()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# -- deadlines


def test_the_greet_deadline_counts_from_the_start(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    connection = harness.start()
    harness.loop.advance(GREET - 0.1)
    assert (harness.failed, connection.tries) == ({}, 0)
    harness.loop.advance(0.1)
    assert (harness.failed, connection.aborted, connection.tries) == ({"greet_timeout": 1}, 1, 1)
    assert warnings(caplog) == ["('192.0.2.7', 3747): not greeted within 10 s"]
    assert (harness.tracker.open_count, harness.loop.timers) == (0, [])


def test_the_linger_deadline_counts_from_the_greeting(harness: Harness) -> None:
    connection = harness.start()
    harness.loop.advance(5)
    harness.greet(connection)
    harness.loop.advance(LINGER - 0.1)
    assert (harness.stats.linger_timeouts, harness.tracker.open_count) == (0, 1)
    harness.loop.advance(0.1)
    assert (harness.stats.linger_timeouts, harness.tracker.open_count, connection.aborted) == (1, 0, 1)
    assert (harness.stats.greeted, harness.failed, connection.tries) == (1, {}, 0)


def test_a_connection_is_open_until_it_is_closed(harness: Harness) -> None:
    """Its path reports that after abort(), one turn of the event loop later or more."""
    greeted, ungreeted = harness.linger(closes_later=True), harness.start(closes_later=True)
    harness.loop.advance(GREET)
    assert (greeted.aborted, ungreeted.aborted, harness.stats.linger_timeouts) == (1, 1, 1)
    harness.loop.advance(10 * LINGER)  # each is aborted once
    assert (greeted.aborted, ungreeted.aborted, harness.stats.linger_timeouts) == (1, 1, 1)
    assert harness.tracker.open_count == 2
    greeted.close()
    ungreeted.close()
    assert harness.tracker.open_count == 0
    assert harness.failed == {"greet_timeout": 1}


@pytest.mark.parametrize("greet", [0.0, 0.01])
def test_a_greet_timeout_below_the_check_interval_is_enforced(greet: float) -> None:
    harness = Harness(greet_timeout=greet)
    connection = harness.start()
    harness.loop.advance(2 * greet + SLACK)
    assert (harness.failed, connection.aborted, harness.loop.timers) == ({"greet_timeout": 1}, 1, [])


# -- the last try at the greet deadline


def test_a_last_try_that_greets_is_no_timeout(harness: Harness) -> None:
    def greet() -> bool:
        harness.greet(connection)
        return True

    connection = harness.start(on_last_try=greet)
    harness.loop.advance(GREET)
    assert (connection.tries, connection.aborted, harness.failed) == (1, 0, {})
    assert (harness.stats.greeted, len(harness.tracker.lingering)) == (1, 1)
    harness.loop.advance(LINGER)
    assert (harness.stats.linger_timeouts, harness.failed, harness.loop.timers) == (1, {}, [])


def test_a_last_try_that_finds_a_reset_is_counted_as_reset(harness: Harness) -> None:
    def reset() -> bool:
        connection.abort()
        return True

    connection = harness.start(on_last_try=reset)
    harness.loop.advance(GREET)
    assert (connection.aborted, harness.failed, harness.tracker.open_count) == (1, {"reset": 1}, 0)


def test_a_last_try_of_the_event_loop_has_a_moment_more(harness: Harness) -> None:
    connection = harness.start(on_last_try=lambda: False)
    harness.loop.advance(GREET + LAST_READ_SECONDS / 2)
    assert (connection.tries, connection.aborted, harness.failed) == (1, 0, {})
    assert is_ungreeted(harness.tracker, connection)
    assert harness.tracker.open_count == 1
    harness.loop.advance(LAST_READ_SECONDS)
    assert (connection.tries, connection.aborted, harness.failed) == (1, 1, {"greet_timeout": 1})
    assert not is_ungreeted(harness.tracker, connection)
    assert (harness.tracker.open_count, harness.loop.timers) == (0, [])


@pytest.mark.parametrize("how", ["greeted", "failed", "greeting failed", "rejected", "reset", "aborted"])
def test_in_that_moment_a_connection_can_still_end_in_any_way(harness: Harness, how: str) -> None:
    tracker = harness.tracker
    connection = harness.start(on_last_try=lambda: False)
    harness.loop.advance(GREET + LAST_READ_SECONDS / 2)
    failed = {}
    if how == "greeted":
        harness.greet(connection)
    elif how == "failed":
        tracker.fail_preamble(connection, "tls", "no TLS handshake (a test)")
        failed = {"tls": 1}
    elif how == "greeting failed":
        tracker.fail_greeting(connection, GreetingError("a bug"))
        failed = {"greeting_error": 1}
    elif how == "rejected":
        tracker.reject(connection, "untrusted")
    elif how == "reset":
        connection.close()
        failed = {"reset": 1}
    else:
        assert tracker.abort_all() == 1
        failed = {"aborted": 1}
    assert not is_ungreeted(tracker, connection)
    harness.loop.advance(LAST_READ_SECONDS)
    connection.close()
    stats = harness.stats
    assert harness.failed == failed
    assert stats.greeted == (how == "greeted")
    assert stats.rejected["untrusted"] == (how == "rejected")
    assert (tracker.open_count, harness.loop.timers) == (0, [])


def test_the_greeting_time_is_that_from_the_start(harness: Harness) -> None:
    connection = harness.start()
    harness.loop.advance(1.5)
    harness.greet(connection)
    assert harness.stats.greeting_time.micros == 1_500_000
    late = harness.start(on_last_try=lambda: False)
    harness.loop.advance(GREET + LAST_READ_SECONDS / 2)
    harness.greet(late)  # counts as the whole time-out
    assert harness.stats.greeting_time.micros == 11_500_000


# -- the check of those that wait for their greeting


def test_a_long_wait_for_the_greeting_is_watched_once(harness: Harness) -> None:
    early = harness.start()
    harness.tracker.waits_for_greeting(early)
    harness.loop.advance(CHECK_SECONDS / 2)
    late = harness.start()
    harness.tracker.waits_for_greeting(late)
    harness.loop.advance(CHECK_SECONDS)
    assert (early.watched, late.watched) == (0, 0)  # 1.5 intervals and one
    harness.loop.advance(CHECK_SECONDS / 2)
    assert (early.watched, late.watched) == (1, 1)  # two intervals and 1.5
    harness.loop.advance(GREET - 1)
    assert (early.watched, late.watched) == (1, 1)


def test_a_short_wait_for_the_greeting_is_not_watched(harness: Harness) -> None:
    connections = []
    for _ in range(20):
        connection = harness.start()
        harness.tracker.waits_for_greeting(connection)
        connections.append(connection)
        harness.loop.advance(0.9 * CHECK_SECONDS)
        harness.greet(connection)
        connection.close()
    harness.loop.advance(1)
    assert not any(connection.watched for connection in connections)


def test_a_connection_that_does_not_wait_for_its_greeting_is_not_watched(harness: Harness) -> None:
    connection = harness.start()
    harness.loop.advance(GREET - 0.1)
    assert connection.watched == 0
    harness.tracker.waits_for_greeting(connection)  # now, with its preamble behind it
    harness.loop.advance(0.09)
    assert connection.watched == 1


def test_short_connections_share_one_timer_of_the_check(harness: Harness) -> None:
    for _ in range(100):
        connection = harness.start()
        harness.tracker.waits_for_greeting(connection)
        assert len(harness.loop.timers) == 1
        harness.greet(connection)
        connection.close()
    assert len(harness.loop.timers) == 1


def test_while_nothing_waits_there_are_no_wake_ups(harness: Harness) -> None:
    assert harness.loop.timers == []
    connection = harness.start()
    harness.tracker.waits_for_greeting(connection)
    harness.greet(connection)
    connection.close()
    harness.loop.advance(2 * CHECK_SECONDS)
    assert len(harness.loop.fired) <= 2
    assert harness.loop.timers == []


def test_between_its_check_and_its_deadline_a_connection_costs_no_wake_up(harness: Harness) -> None:
    connection = harness.start()
    harness.tracker.waits_for_greeting(connection)
    harness.loop.advance(2 * CHECK_SECONDS)
    fired = len(harness.loop.fired)
    assert len(harness.loop.timers) == 1
    harness.loop.advance(GREET - 1)
    assert len(harness.loop.fired) == fired
    harness.loop.advance(1)
    assert connection.aborted == 1


def test_a_late_check_moves_the_deadlines_that_passed_meanwhile() -> None:
    harness = Harness(greet_timeout=1.0)
    connection = harness.start()
    harness.loop.pause(5)
    harness.loop.turn()
    assert (connection.tries, harness.failed) == (0, {})
    harness.loop.advance(1 - CHECK_SECONDS - 0.01)  # what was left when the check was due
    assert (connection.tries, harness.failed) == (0, {})
    harness.loop.advance(0.02)
    assert (connection.tries, harness.failed) == (1, {"greet_timeout": 1})


def test_a_check_of_a_busy_event_loop_moves_no_deadline() -> None:
    harness = Harness(greet_timeout=0.1)
    connection = harness.start()
    harness.loop.pause(CHECK_SECONDS + 0.9 * PAUSE_SECONDS)
    harness.loop.turn()
    assert connection.tries == 0  # its timer was set only now
    harness.loop.turn()
    assert (connection.tries, harness.failed) == (1, {"greet_timeout": 1})


def test_a_pause_moves_the_greet_deadline_once(harness: Harness) -> None:
    connection = harness.start()
    harness.loop.advance(GREET - 1)
    harness.loop.pause(5)
    harness.loop.turn()
    assert connection.tries == 0
    harness.loop.pause(5)
    harness.loop.turn()
    harness.loop.turn()
    assert (connection.tries, harness.failed) == (1, {"greet_timeout": 1})
    assert (harness.tracker.open_count, harness.loop.timers) == (0, [])


# -- counters


def test_each_connection_ends_in_one_counter(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    tracker = harness.tracker
    greeted = harness.linger()
    greeted.close()
    greeting_error = harness.start()
    tracker.fail_greeting(greeting_error, GreetingError("a bug"))
    tracker.start_linger(greeting_error)
    assert tracker.open_count == 1
    greeting_error.close()
    tracker.accepted(CLIENT, object())
    tracker.count_greeting_error(
        CLIENT, object(), GreetingError("another"), 0.1
    )  # within the call that accepted it
    reset, reset_twice = harness.start(), harness.start()
    reset.close()
    reset_twice.close()
    reset_twice.close()
    tls, proxy = harness.start(), harness.start()
    tracker.fail_preamble(tls, "tls", "no TLS handshake (a test)")
    tracker.fail_preamble(proxy, "proxy", "no PROXY header (a test)")
    tls.close()
    tracker.abort(proxy)
    untrusted, denied = harness.start(), harness.start()
    tracker.reject(untrusted, "untrusted")
    tracker.count_rejection(CLIENT, "denied")
    tracker.reject(denied)
    untrusted.close()
    denied.close()
    assert harness.stats.accepted == 9
    assert (harness.stats.greeted, harness.stats.bytes_sent) == (1, 5)
    assert harness.failed == {"greeting_error": 2, "reset": 2, "tls": 1, "proxy": 1}
    assert {why: n for why, n in harness.stats.rejected.items() if n} == {"untrusted": 1, "denied": 1}
    harness.loop.advance(CHECK_SECONDS)
    assert (tracker.open_count, harness.loop.timers) == (0, [])
    assert warnings(caplog) == [
        "('192.0.2.7', 3747): a bug",
        "('192.0.2.7', 3747): another",
        "rejected clients: untrusted 1 so far, last ('192.0.2.7', 3747)",
    ]


def test_greetings_of_a_batch_are_counted_at_once(harness: Harness) -> None:
    for _ in range(4):
        harness.tracker.accepted(CLIENT, object())
    harness.tracker.stats.count_greeted(15, 0.002, 3)
    harness.tracker.count_reset()
    assert (harness.stats.greeted, harness.stats.bytes_sent, harness.failed) == (3, 15, {"reset": 1})
    assert harness.stats.greeting_time.micros == 6000


def test_abort_all(harness: Harness) -> None:
    expiring = harness.start(on_last_try=lambda: False)
    harness.loop.advance(GREET)
    waiting, lingering = harness.start(), harness.linger()
    server, client = socket.socketpair()
    harness.tracker.lingering_sockets.add(server)
    with client:
        assert harness.tracker.open_count == 4
        assert harness.tracker.abort_all() == 4
    assert (waiting.aborted, lingering.aborted, expiring.aborted, server.fileno()) == (1, 1, 1, -1)
    assert harness.tracker.open_count == 0
    assert harness.failed == {"aborted": 2}
    assert harness.tracker.abort_all() == 0
    harness.loop.advance(1)
    assert (harness.loop.timers, harness.failed, harness.stats.linger_timeouts) == ([], {"aborted": 2}, 0)


async def test_abort_remaining_lets_what_is_under_way_happen() -> None:
    """Some turns of the event loop before it aborts, and some in which the connections are closed."""

    class SlowToClose(StubConnection):
        def abort(self) -> None:
            self.aborted += 1
            loop.call_soon(loop.call_soon, self.close)

    loop = asyncio.get_running_loop()
    tracker = ConnectionTracker(PATIENT)
    waiting, ready, arriving = SlowToClose(tracker), StubConnection(tracker), StubConnection(tracker)
    for connection in (waiting, ready):
        assert tracker.accepted(connection.address, connection.key)
        tracker.start(connection)
    tracker.arriving += 1

    def greet(connection: StubConnection) -> None:
        tracker.mark_greeted(connection, 5)
        connection.begin_linger()
        connection.close()

    def arrive() -> None:
        assert tracker.accepted(arriving.address, arriving.key)
        tracker.start(arriving)
        tracker.arrived()
        loop.call_soon(greet, arriving)

    loop.call_soon(loop.call_soon, arrive)
    loop.call_soon(loop.call_soon, greet, ready)
    assert tracker.open_count == 3
    assert await tracker.abort_remaining() == 1
    assert (waiting.aborted, ready.aborted, arriving.aborted, tracker.open_count) == (1, 0, 0, 0)
    assert (tracker.stats.greeted, tracker.stats.failed["aborted"]) == (2, 1)


def test_a_connection_that_arrives_counts_as_open() -> None:
    harness = Harness(capacity=2)
    tracker = harness.tracker
    tracker.arriving += 2
    assert (tracker.open_count, tracker.free_slots) == (2, 0)
    tracker.at_capacity()
    tracker.arrived()  # lost on its way
    assert harness.told == ["pause", "resume"]
    harness.start()
    tracker.arrived()
    assert (tracker.open_count, tracker.free_slots) == (1, 1)


# -- admission


def test_the_access_log_gets_the_address_of_each_admitted_client() -> None:
    log: list[Any] = []
    harness = Harness(access_log=log.append, limits=Limits(deny=["198.51.100.0/24"]))
    assert harness.tracker.accepted(CLIENT, object())
    assert not harness.tracker.accepted(("198.51.100.1", 1), object())
    assert harness.tracker.accepted("", object())  # a Unix socket: its permissions have decided
    assert harness.tracker.accepted(None, object())
    assert log == [CLIENT, "", None]
    assert harness.stats.accepted == 4
    assert harness.stats.rejected["denied"] == 1


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, SystemExit, GeneratorExit])
def test_an_access_log_that_fails_costs_no_client(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Any) -> None:
        raise error("a bug")

    harness = Harness(access_log=fail)
    for _ in range(3):
        assert harness.tracker.accepted(CLIENT, object())
    assert warnings(caplog) == [f"the access log failed for ('192.0.2.7', 3747): {error.__name__}('a bug')"]


def test_behind_a_proxy_the_header_decides() -> None:
    log: list[Any] = []
    harness = Harness(access_log=log.append, limits=Limits(allow=["192.0.2.0/24"]), proxy_from=PROXIES)
    assert harness.tracker.accepted(("127.0.0.1", 5), object())
    assert log == []
    assert harness.tracker.admit(CLIENT, object())
    assert not harness.tracker.admit(("203.0.113.1", 5), object())
    assert log == [CLIENT]


def test_an_admission_is_released_when_its_client_is_gone() -> None:
    harness = Harness(limits=Limits(max_per_ip=2))
    first, second = harness.start(), harness.start()
    assert not harness.tracker.accepted(CLIENT, object())
    first.close()
    third = harness.start()
    assert not harness.tracker.accepted(CLIENT, object())
    assert harness.stats.rejected["per_ip"] == 2
    harness.greet(second)
    second.close()
    harness.tracker.release_admission(harness.accept().key)  # it closed before its greeting could be sent
    unix = harness.start(address="")  # which is not counted
    unix.close()
    assert harness.admission.addresses == 1
    third.close()
    assert harness.admission.addresses == 0


def test_lingering_sockets_release_their_admission() -> None:
    harness = Harness(limits=Limits(max_per_ip=1))
    server, client = socket.socketpair()
    with client:
        assert harness.tracker.accepted(CLIENT, server)
        harness.tracker.lingering_sockets.add_all([server])
        assert not harness.tracker.accepted(CLIENT, object())
    harness.loop.advance(1)
    assert harness.tracker.accepted(CLIENT, object())


def test_rejections_are_logged_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    harness = Harness(limits=Limits(deny=["192.0.2.0/24"]))
    for _ in range(5):
        for _ in range(100):
            harness.tracker.accepted(CLIENT, object())
        harness.loop.advance(LOG_INTERVAL / 2)
    harness.tracker.count_rejection(CLIENT, "untrusted")
    assert warnings(caplog) == [
        "rejected clients: denied 1 so far, last ('192.0.2.7', 3747)",
        "rejected clients: denied 201 so far, last ('192.0.2.7', 3747)",
        "rejected clients: denied 401 so far, last ('192.0.2.7', 3747)",
    ]
    assert harness.stats.rejected["denied"] == 500


# -- capacity


def test_at_capacity_accepting_is_paused_until_a_connection_is_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    harness = Harness(capacity=2)
    first, second = harness.linger(), harness.linger()
    assert harness.tracker.free_slots == 0
    harness.tracker.at_capacity()
    harness.tracker.at_capacity()
    assert harness.told == ["pause"]
    first.close()
    assert harness.told == ["pause", "resume"]
    second.close()  # accepting has resumed already
    assert harness.told == ["pause", "resume"]
    assert warnings(caplog) == [
        "at 2 connections: accepting is paused, new connections wait in the accept queue"
    ]


def test_the_time_of_pauses_is_counted() -> None:
    harness = Harness(capacity=1)
    pause = harness.tracker.accept_pause
    connection = harness.linger()
    assert pause.accepting
    harness.tracker.at_capacity()
    harness.loop.advance(1.0)
    assert not pause.accepting
    pause.count_time()
    assert harness.stats.paused_micros == 1_000_000, "also during the pause"
    harness.tracker.at_capacity()
    harness.loop.advance(0.5)
    connection.close()
    harness.loop.advance(0.25)
    assert pause.accepting
    assert harness.stats.paused_micros == 1_500_000
    harness.tracker.cannot_accept(OSError(24, "irrelevant"))
    harness.loop.advance(RETRY_SECONDS)
    assert pause.accepting
    assert harness.stats.paused_micros == 1_500_000 + RETRY_SECONDS * 1_000_000
    harness.tracker.stop_accepting()
    harness.loop.advance(1.0)
    assert not pause.accepting
    assert harness.stats.paused_micros == 1_500_000 + RETRY_SECONDS * 1_000_000


def test_beyond_capacity_accepting_resumes_below_it() -> None:
    """asyncio accepts a batch more than it should, and a reload may lower the capacity."""
    harness = Harness(capacity=2)
    connections = [harness.linger() for _ in range(4)]
    harness.tracker.at_capacity()
    connections[0].close()
    connections[1].close()
    assert harness.told == ["pause"]
    connections[2].close()
    assert harness.told == ["pause", "resume"]


def test_a_pause_is_logged_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    harness = Harness(capacity=1)
    for _ in range(40):
        harness.tracker.at_capacity()
        harness.loop.advance(LOG_INTERVAL / 20)
        connection = harness.linger()
        connection.close()
    assert harness.told == ["pause", "resume"] * 40
    assert len(warnings(caplog)) == 2


def test_without_descriptors_accepting_is_tried_again_after_a_while(caplog: pytest.LogCaptureFixture) -> None:
    harness = Harness()
    connection = harness.linger()
    for _ in range(3):  # one for each listener
        harness.tracker.cannot_accept(OSError(24, "irrelevant"))
    assert harness.told == ["pause"]
    assert harness.stats.accept_errors == 3
    connection.close()  # which may or may not free a descriptor
    harness.loop.advance(RETRY_SECONDS - 0.001)
    assert harness.told == ["pause"]
    harness.loop.advance(0.001)
    assert harness.told == ["pause", "resume"]
    assert harness.loop.timers == []
    assert warnings(caplog) == [
        "cannot accept (too many open files): accepting is paused, new connections wait in the accept queue"
    ]


def test_while_descriptors_are_short_accepting_is_tried_twice_a_second(
    caplog: pytest.LogCaptureFixture,
) -> None:
    retrying: Harness = Harness(resume=lambda: retrying.tracker.cannot_accept(OSError(12, "irrelevant")))
    retrying.tracker.cannot_accept(OSError(12, "irrelevant"))
    retrying.loop.advance(9.9)
    assert retrying.stats.accept_errors == 1 + 9.5 // RETRY_SECONDS
    assert len(warnings(caplog)) == 10


def test_after_stop_accepting_nothing_resumes() -> None:
    harness = Harness(capacity=1)
    connection = harness.linger()
    harness.tracker.at_capacity()
    harness.tracker.cannot_accept(OSError(24, "irrelevant"))
    harness.tracker.stop_accepting()
    connection.close()
    harness.loop.advance(10)
    assert harness.told == ["pause"]
    assert harness.loop.timers == []


async def test_every_waiter_for_capacity_is_woken() -> None:
    tracker = ConnectionTracker(PATIENT, max_capacity=3)
    tracker.set_capacity(2)
    await tracker.wait_for_capacity()  # there is some
    connections = [StubConnection(tracker) for _ in range(2)]
    for connection in connections:
        connection.begin_linger()
    waiting = [asyncio.create_task(tracker.wait_for_capacity()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting.pop().cancel()  # without effect on the others
    tracker.set_capacity(1)
    await asyncio.sleep(0)
    connections[0].close()  # it is still at its capacity
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    tracker.set_capacity(2)
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*waiting)
    connections[1].close()
    await tracker.wait_idle()


async def test_every_waiter_for_idle_is_woken() -> None:
    tracker = ConnectionTracker(PATIENT)
    await tracker.wait_idle()  # nothing is open
    connections = [StubConnection(tracker) for _ in range(3)]
    for connection in connections:
        tracker.accepted(connection.address, connection.key)
        connection.begin_linger()
    waiting = [asyncio.create_task(tracker.wait_idle()) for _ in range(3)]
    await asyncio.sleep(0)
    connections[0].close()
    connections[1].close()
    waiting.pop().cancel()  # without effect on the others
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    connections[2].close()
    one_more = StubConnection(tracker)
    one_more.begin_linger()  # before they run
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    one_more.close()
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*waiting)


def is_ungreeted(tracker: ConnectionTracker, connection: Any) -> bool:
    """Whether a connection is still to be greeted: no deadline has passed, and nothing has failed."""
    return connection in tracker.ungreeted or connection in tracker._expiring


# -- names


@pytest.mark.parametrize(
    ("address", "family", "host", "port", "text"),
    [
        (("192.0.2.7", 3747), socket.AF_INET, "192.0.2.7", 3747, "('192.0.2.7', 3747)"),
        (("2001:db8::7", 3747, 0, 0), socket.AF_INET6, "2001:db8::7", 3747, "('2001:db8::7', 3747)"),
        ("", socket.AF_UNIX, "", 0, "'unix:'"),
        ("/run/a\nforged line", socket.AF_UNIX, "/run/a\nforged line", 0, r"'unix:/run/a\nforged line'"),
        (b"\0name", socket.AF_UNIX, "@name", 0, "'unix:@name'"),
        (b"\0na\0me\xff", socket.AF_UNIX, "@na\0me\\xff", 0, r"'unix:@na\x00me\\xff'"),
        (None, socket.AF_INET, "", 0, "a disconnected client"),
    ],
)
def test_how_a_peer_and_a_log_line_name_a_client(
    harness: Harness, address: Any, family: int, host: str, port: int, text: str
) -> None:
    peer = Conversation(harness.tracker).make_peer(address, family, "127.0.0.1:9999", 7)
    assert (peer.host, peer.port, peer.family) == (host, port, family)
    assert (peer.server, peer.hostname, peer.count) == ("127.0.0.1:9999", socket.gethostname(), 7)
    assert format_peer(address) == text


# -- the states and the counters, in any order


UNGREETED = (State.PREAMBLE, State.GREETING)


class ModelConnection(StubConnection):
    """A connection that knows in which state it has to be, and which calls of the tracker that state allows.

    ``expected`` is that state; ``expiring``: at its greet deadline, while the event loop reads once more;
    ``told``: to abort.
    """

    def __init__(self, model: AnyOrder, host: str, path: str, last_try: str, closes_later: bool) -> None:
        super().__init__(model.tracker, (host, 1), closes_later=closes_later and path == "streams")
        self.model = model
        self.sock, self.client = socket.socketpair()
        if path == "direct":
            self.key = self.sock
        self.direct = path == "direct"
        self.expected = State.ACCEPTED
        self.admitted = self.expiring = self.told = False
        self.started = self.waiting = self.expired = model.loop.now
        self.pauses = model.pauses
        self.on_last_try = {
            "nothing": lambda: True,
            "later": self.expire,
            "greets": self.greet,
            "resets": self.reset,
        }[last_try]

    @property
    def age(self) -> float:
        """Seconds since the last deadline was set, without those of pauses."""
        return self.model.loop.now - self.started - (self.model.pauses - self.pauses)

    @property
    def open(self) -> bool:
        return self.expected is not State.CLOSED

    def enter(self, state: State) -> None:
        """What a conversation or its path does when it comes to ``state``."""
        self.state = self.expected = state

    def expire(self) -> bool:
        self.expiring = True
        self.expired = self.model.loop.now
        return False

    def greet(self) -> bool:
        self.enter(State.GREETING)
        self.tracker.mark_greeted(self, 5)
        self.model.count("greeted")
        self.begin_linger()
        return True

    def reset(self) -> bool:
        self.model.count("reset")
        self.close()
        return True

    def begin_linger(self) -> None:
        self.expected = State.LINGERING
        self.started, self.pauses = self.model.loop.now, self.model.pauses
        if self.direct:
            self.enter(State.LINGERING)
            self.tracker.lingering_sockets.add(self.sock)
        else:
            self.tracker.start_linger(self)

    def watch_for_reset(self) -> None:
        super().watch_for_reset()
        assert self.expected is State.GREETING
        assert not self.expiring
        assert self.model.loop.now - self.waiting >= CHECK_SECONDS - 1e-9

    def last_try(self) -> bool:
        assert self.expected in UNGREETED
        assert not self.expiring
        assert self.model.loop.now - self.started >= GREET - TIMER_SLACK - 1e-9
        return super().last_try()

    def abort(self) -> None:
        assert self.open
        assert not self.told
        why = self.model.aborting
        if self.expected is State.LINGERING:
            if not why:
                assert self.model.loop.now - self.started >= LINGER - TIMER_SLACK - 1e-9
                self.model.linger_timeouts += 1
            self.expected = State.ABORTED
        elif not why:
            assert self.tries == 1
            if self.expiring:
                assert self.model.loop.now - self.expired >= LAST_READ_SECONDS - TIMER_SLACK - 1e-9
            self.model.count("greet_timeout")
            self.expected = State.FAILED
        else:
            self.model.count(why)
            self.expected = {"aborted": State.ABORTED, "proxy": State.FAILED}.get(why, State.REJECTED)
        assert self.state is self.expected
        self.told = True
        super().abort()

    def close(self) -> None:
        self.expected = State.CLOSED
        self.sock.close()
        self.client.close()
        super().close()


class AnyOrder(RuleBasedStateMachine):
    """Connections go through the states of tracker.py in any order, while time goes by."""

    @initialize(behind_proxy=st.booleans())
    def begin(self, behind_proxy: bool) -> None:
        proxies = PROXIES if behind_proxy else None
        self.harness = Harness(capacity=4, limits=Limits(max_per_ip=3), proxy_from=proxies)
        self.admission = self.harness.admission
        self.tracker, self.loop = self.harness.tracker, self.harness.loop
        self.behind_proxy = behind_proxy
        self.connections: list[ModelConnection] = []
        self.counts: dict[str, int] = {}
        self.accepted = self.linger_timeouts = 0
        self.pauses = 0.0
        self.aborting = ""  # why connections are aborted, where that is not for a deadline

    def teardown(self) -> None:
        self.tracker.stop_accepting()
        while self.tracker.arriving:
            self.tracker.arrived()
        self.abort_all()
        for connection in self.connections:
            if connection.told and connection.open:
                connection.close()
        self.loop.advance(2 * CHECK_SECONDS)
        assert (self.tracker.open_count, self.admission.addresses, self.loop.timers) == (0, 0, [])

    def count(self, outcome: str) -> None:
        self.counts[outcome] = self.counts.get(outcome, 0) + 1

    def pick(self, data: st.DataObject, *states: State, admitted: bool | None = None) -> Any:
        """Returns a connection in one of ``states``, or None if there is none."""
        found = [
            connection
            for connection in self.connections
            if connection.expected in states and admitted in (None, connection.admitted)
        ]
        return data.draw(st.sampled_from(found)) if found else None

    # -- from accept on

    @rule(
        host=st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1"]),
        path=st.sampled_from(["direct", "streams"]),
        last_try=st.sampled_from(["nothing", "later", "greets", "resets"]),
        closes_later=st.booleans(),
        at_once=st.booleans(),
    )
    def accept(self, host: str, path: str, last_try: str, closes_later: bool, at_once: bool) -> None:
        """``at_once``: the greeting is known, and goes out within this call."""
        connection = ModelConnection(self, host, path, last_try, closes_later)
        self.accepted += 1
        if not self.tracker.accepted(connection.address, connection.key):
            self.count("per_ip")
            connection.sock.close()
            connection.client.close()
            return
        self.connections.append(connection)
        connection.admitted = not self.behind_proxy
        if at_once and path == "direct" and connection.admitted:
            self.count("greeted")
            self.tracker.stats.count_greeted(5, 0.0)
            connection.enter(State.GREETING)
            connection.begin_linger()
        else:
            self.tracker.start(connection)
            connection.enter(State.PREAMBLE)
        if self.tracker.free_slots <= 0:
            self.tracker.at_capacity()

    @rule()
    def begin_to_arrive(self) -> None:
        self.tracker.arriving += 1

    @precondition(lambda self: self.tracker.arriving)
    @rule(lost=st.booleans())
    def arrive(self, lost: bool) -> None:
        if lost:
            self.accepted += 1
            self.count("reset")
            self.tracker.stats.block[ACCEPTED] += 1
            self.tracker.count_reset()
        else:
            self.accept("192.0.2.1", "streams", "nothing", False, False)
        self.tracker.arrived()

    # -- the preamble

    @precondition(lambda self: self.behind_proxy)
    @rule(data=st.data(), trusted=st.booleans())
    def read_header(self, data: st.DataObject, trusted: bool) -> None:
        connection = self.pick(data, State.PREAMBLE, admitted=False)
        if connection is None:
            return
        if trusted and self.tracker.admit(connection.address, connection.key):
            connection.admitted = True
            return
        self.tracker.reject(connection, "" if trusted else "untrusted")
        self.aborting = "per_ip" if trusted else "untrusted"
        self.tracker.abort(connection)
        self.aborting = ""

    @rule(data=st.data(), why=st.sampled_from(["proxy", "tls"]))
    def fail_preamble(self, data: st.DataObject, why: str) -> None:
        if connection := self.pick(data, State.PREAMBLE, admitted=why == "tls"):
            self.tracker.fail_preamble(connection, why, "a test")
            if why == "tls":
                self.count("tls")
                connection.begin_linger()
            else:
                self.aborting = "proxy"
                self.tracker.abort(connection)
                self.aborting = ""

    # -- the greeting

    @rule(data=st.data())
    def wait_for_greeting(self, data: st.DataObject) -> None:
        connection = self.pick(data, State.PREAMBLE, admitted=True)
        if connection is not None and not connection.expiring:
            connection.expected = State.GREETING
            connection.waiting = self.loop.now
            self.tracker.waits_for_greeting(connection)

    @rule(data=st.data())
    def greet(self, data: st.DataObject) -> None:
        if connection := self.pick(data, *UNGREETED, admitted=True):
            connection.greet()

    @rule(data=st.data())
    def fail_greeting(self, data: st.DataObject) -> None:
        if connection := self.pick(data, *UNGREETED, admitted=True):
            connection.enter(State.GREETING)
            self.tracker.fail_greeting(connection, GreetingError("a bug"))
            self.count("greeting_error")
            connection.begin_linger()

    # -- the end

    @rule(data=st.data())
    def reset(self, data: st.DataObject) -> None:
        if connection := self.pick(data, *UNGREETED):
            connection.reset()

    @rule(data=st.data())
    def client_closes(self, data: st.DataObject) -> None:
        if connection := self.pick(data, State.LINGERING):
            if connection.direct:
                connection.client.close()
            else:
                connection.close()

    @rule(data=st.data())
    def path_closes(self, data: st.DataObject) -> None:
        if found := [connection for connection in self.connections if connection.told and connection.open]:
            data.draw(st.sampled_from(found)).close()

    @rule()
    def abort_all(self) -> None:
        self.see_closed_sockets()
        arriving = self.tracker.arriving
        aborted = sum(connection.told and connection.open for connection in self.connections)
        expected = self.tracker.open_count - arriving - aborted
        self.aborting = "aborted"
        assert self.tracker.abort_all() == expected
        self.aborting = ""
        for connection in self.connections:
            if connection.expected is State.LINGERING:
                assert connection.sock.fileno() == -1
                connection.enter(State.CLOSED)
                connection.client.close()

    # -- time and capacity

    @rule(seconds=st.sampled_from([0.0, LAST_READ_SECONDS / 2, CHECK_SECONDS, 0.1, 1.0, 3.0, GREET]))
    def advance(self, seconds: float) -> None:
        self.loop.advance(seconds)

    @rule(seconds=st.sampled_from([0.1, 1.0, 2 * GREET]))
    def pause(self, seconds: float) -> None:
        self.loop.pause(seconds)
        self.pauses += seconds
        self.loop.advance(0)

    @rule(capacity=st.integers(1, 5))
    def set_capacity(self, capacity: int) -> None:
        self.tracker.set_capacity(capacity)
        if self.tracker.free_slots <= 0:
            self.tracker.at_capacity()

    @rule()
    def cannot_accept(self) -> None:
        self.tracker.cannot_accept(OSError(24, "irrelevant"))

    # -- what always holds

    def see_closed_sockets(self) -> None:
        """Lingering sockets are closed without a call that the model could see."""
        for connection in self.connections:
            if connection.expected is State.LINGERING and connection.sock.fileno() == -1:
                connection.enter(State.CLOSED)
                if connection.client.fileno() != -1:
                    assert self.loop.now - connection.started >= LINGER - TIMER_SLACK
                    self.linger_timeouts += 1
                connection.client.close()

    @invariant()
    def every_connection_is_where_its_state_says(self) -> None:
        tracker = self.tracker
        self.see_closed_sockets()
        lingering_sockets = 0
        for connection in self.connections:
            state, ungreeted = connection.state, connection.state in UNGREETED
            lingering_sockets += state is State.LINGERING and connection.direct
            assert state is connection.expected
            assert (connection in tracker.ungreeted) == (ungreeted and not connection.expiring)
            assert (connection in tracker._expiring) == (ungreeted and connection.expiring)
            assert (connection in tracker.lingering) == (state is State.LINGERING and not connection.direct)
            assert (connection in tracker._aborting) == (connection.told and connection.open)
        assert len(tracker.lingering_sockets) == lingering_sockets

    @invariant()
    def the_counters_add_up(self) -> None:
        stats, tracker = self.harness.stats, self.tracker
        failed, rejected = sum(stats.failed.values()), sum(stats.rejected.values())
        open_ungreeted = len(tracker.ungreeted) + len(tracker._expiring)
        assert stats.accepted == self.accepted == stats.greeted + failed + rejected + open_ungreeted
        counted = {"greeted": stats.greeted, **stats.failed, **stats.rejected}
        assert {outcome: count for outcome, count in counted.items() if count} == self.counts
        assert stats.linger_timeouts == self.linger_timeouts

    @invariant()
    def open_connections_count_and_hold_their_admission(self) -> None:
        self.see_closed_sockets()
        open_now = [connection for connection in self.connections if connection.open]
        assert self.tracker.open_count == len(open_now) + self.tracker.arriving
        admitted = {connection.key for connection in open_now if connection.admitted}
        assert self.tracker._admitted.keys() == admitted
        assert sum(self.admission._open.values()) == len(admitted)

    @invariant()
    def no_connection_stays_beyond_its_deadline(self) -> None:
        bounds = {
            State.PREAMBLE: GREET + SLACK,
            State.GREETING: GREET + SLACK,
            State.LINGERING: LINGER + 2 * FIRST_CHECK_DELAY + SLACK,
        }
        for connection in self.connections:
            if connection.state in bounds:
                last_read = LAST_READ_SECONDS + SLACK if connection.expiring else 0
                assert connection.age <= bounds[connection.state] + last_read

    @invariant()
    def a_long_wait_for_the_greeting_is_watched_once(self) -> None:
        for connection in self.connections:
            assert connection.watched <= 1
            if connection.state is State.GREETING and not connection.expiring and not connection.watched:
                waited = self.loop.now - connection.waiting - (self.pauses - connection.pauses)
                assert waited <= 2 * CHECK_SECONDS + 1e-9

    @invariant()
    def accepting_is_paused_for_want_of_capacity_or_descriptors(self) -> None:
        told = self.harness.told
        assert all(a != b for a, b in zip(told, told[1:], strict=False))
        if told and told[-1] == "pause":
            assert self.tracker.free_slots <= 0 or self.tracker.accept_pause._retry is not None

    @invariant()
    def timers_are_few(self) -> None:
        assert len(self.loop.timers) <= 6  # one for each table, the check, and accepting


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40)

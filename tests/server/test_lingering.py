"""Lingering sockets in virtual time: when each is read and closed, and that there are no wake-ups without."""

from __future__ import annotations

import heapq
import itertools
import socket
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greeter.server import lingering
from greeter.server.lingering import (
    FIRST_CHECK_DELAY,
    LEARN_FROM,
    MAX_FIRST_CHECK_DELAY,
    TIMER_SLACK,
    LingeringSockets,
    discard_input,
)
from greeter.server.timeouts import PAUSE_SECONDS
from tests.support.peers import reset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LINGER = 2.0
# By when a socket that was added just now is read, where a timer is needed for it.
FIRST_CHECK = FIRST_CHECK_DELAY + TIMER_SLACK
# Turns of the event loop in one advance(): more than any test needs.
MAX_TURNS = 10_000


class VirtualTimer:
    """What call_at() returns."""

    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when = when
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class VirtualLoop:
    """The clock, the timers and the turns of an event loop. Time passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.fired: list[float] = []  # when timers fired
        self._ready: list[Callable[[], None]] = []
        self._timers: list[tuple[float, int, VirtualTimer]] = []
        self._serial = itertools.count()

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        self._ready.append(lambda: callback(*args))

    def call_at(self, when: float, callback: Callable[..., None], *args: Any) -> VirtualTimer:
        timer = VirtualTimer(when, lambda: callback(*args))
        heapq.heappush(self._timers, (when, next(self._serial), timer))
        return timer

    def call_later(self, delay: float, callback: Callable[..., None], *args: Any) -> VirtualTimer:
        return self.call_at(self.now + delay, callback, *args)

    @property
    def timers(self) -> list[float]:
        """When timers are due, of those that are set."""
        return sorted(when for when, _, timer in self._timers if not timer.cancelled)

    def turn(self) -> None:
        """Run what is ready and the timers that are due; what these add runs in the next turn."""
        ready, self._ready = self._ready, []
        due = []
        while self._timers and self._timers[0][0] <= self.now:
            due.append(heapq.heappop(self._timers)[2])
        for call in ready:
            call()
        for timer in due:
            if not timer.cancelled:
                self.fired.append(self.now)
                timer.call()

    def pause(self, seconds: float) -> None:
        """Let time pass while the process stands still: timers ring late, in the next turn."""
        self.now += seconds

    def advance(self, seconds: float) -> None:
        """Let time pass while the event loop runs: every timer rings on time."""
        end = self.now + seconds
        for _ in range(MAX_TURNS):
            self.turn()
            timers = self.timers
            if self._ready:
                continue
            if not timers or timers[0] > end:
                self.now = end
                return
            self.now = max(self.now, timers[0])
        raise AssertionError(f"{MAX_TURNS} turns in {seconds} s")


class Harness:
    """Lingering sockets, their clock, their clients, and what is told of them."""

    def __init__(self, seconds: float = LINGER) -> None:
        self.loop = VirtualLoop()
        self.closed: list[socket.SocketType] = []
        self.expired = 0
        self.clients: list[socket.socket] = []
        loop: Any = self.loop
        self.lingering = LingeringSockets(loop, seconds, self.closed.extend, self._on_expired)

    def _on_expired(self, socks: list[socket.SocketType]) -> None:
        self.expired += len(socks)

    def pairs(self, count: int) -> list[socket.SocketType]:
        """Returns so many connected sockets, whose clients are the last of ``clients``."""
        pairs = [socket.socketpair() for _ in range(count)]
        self.clients += [client for _, client in pairs]
        return [server for server, _ in pairs]

    def add(self, count: int = 1) -> list[socket.socket]:
        """Add so many sockets at once; returns their clients."""
        self.lingering.add_all(self.pairs(count))
        return self.clients[-count:]

    def close(self) -> None:
        self.lingering.close_all()
        for client in self.clients:
            client.close()


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    harness.close()


def test_a_stop_notices_soon_that_a_client_closes_that_has_lingered_for_long() -> None:
    harness = Harness(seconds=600.0)
    early, late = harness.add(), harness.add(2)
    harness.loop.advance(300.0)
    early[0].close()
    late[0].close()
    harness.loop.advance(10.0)
    assert harness.closed == [], "by now, they are read once in minutes"
    harness.lingering.restart()
    harness.loop.advance(FIRST_CHECK)
    assert len(harness.closed) == 2
    late[1].close()
    harness.loop.advance(FIRST_CHECK * 3)
    assert (len(harness.closed), harness.expired, harness.loop.timers) == (3, 0, [])
    harness.lingering.restart()
    assert harness.loop.timers == []
    harness.close()


def test_a_stop_leaves_the_linger_deadline_where_it_was(harness: Harness) -> None:
    harness.add()
    harness.loop.advance(LINGER / 2)
    harness.lingering.restart()
    harness.loop.advance(LINGER / 2 - TIMER_SLACK)
    assert harness.expired == 0
    harness.loop.advance(2 * TIMER_SLACK)
    assert harness.expired == 1


def test_without_sockets_no_timer_is_set(harness: Harness) -> None:
    assert (len(harness.lingering), harness.loop.timers) == (0, [])


def test_a_client_that_closes_at_once_is_closed_at_the_first_check(harness: Harness) -> None:
    clients = harness.add(3)
    assert len(harness.lingering) == 3
    assert harness.loop.timers == [pytest.approx(harness.loop.now + FIRST_CHECK)]
    for client in clients:
        client.close()
    harness.loop.advance(FIRST_CHECK)
    assert len(harness.lingering) == 0
    assert len(harness.closed) == 3
    assert all(sock.fileno() == -1 for sock in harness.closed)
    assert harness.expired == 0
    assert harness.loop.timers == []


def test_a_silent_socket_is_checked_less_and_less_often(harness: Harness) -> None:
    harness.add()
    start = harness.loop.now
    harness.loop.advance(LINGER + 1)
    fired = [at - start for at in harness.loop.fired]
    delays = [later - earlier for earlier, later in itertools.pairwise([0.0, *fired])]
    # The delay doubles from check to check, and the last check is at the deadline.
    assert delays[0] == pytest.approx(FIRST_CHECK)
    for shorter, longer in itertools.pairwise(delays[:-1]):
        assert longer == pytest.approx(2 * shorter, abs=3 * TIMER_SLACK)
    assert fired[-1] == pytest.approx(LINGER + TIMER_SLACK)
    assert (len(harness.lingering), harness.expired, len(harness.closed)) == (0, 1, 1)
    assert harness.loop.timers == []


def test_a_socket_with_input_is_checked_again_soon(harness: Harness) -> None:
    (client,) = harness.add()
    harness.loop.advance(0.6)  # the next check is more than 0.4 s away
    (due,) = harness.loop.timers
    assert due > harness.loop.now + 0.4
    client.send(b"one, ")
    harness.loop.advance(due - harness.loop.now)
    for _ in range(3):  # as long as more comes
        assert harness.loop.timers == [pytest.approx(harness.loop.now + FIRST_CHECK, abs=2 * TIMER_SLACK)]
        client.send(b"and another, ")
        harness.loop.advance(harness.loop.timers[0] - harness.loop.now)
    quiet = harness.loop.now
    harness.loop.advance(0.1)  # nothing more comes: the delay doubles again
    delays = [later - earlier for earlier, later in itertools.pairwise([quiet, *harness.loop.fired[-4:]])]
    assert delays == sorted(delays)
    assert harness.expired == 0


def test_input_is_discarded(harness: Harness) -> None:
    (client,) = harness.add()
    client.setblocking(False)
    sent = 0
    while sent < 2_000_000:  # far more than a socket holds, so it must have been read
        try:
            sent += client.send(b"x" * 65536)
        except BlockingIOError:
            harness.loop.advance(FIRST_CHECK)
    client.close()
    harness.loop.advance(2 * FIRST_CHECK)
    assert (len(harness.lingering), harness.expired) == (0, 0)


def test_a_client_that_keeps_sending_is_closed_at_its_deadline(harness: Harness) -> None:
    (client,) = harness.add()
    start = harness.loop.now
    while len(harness.lingering):
        client.send(b"and another, ")
        harness.loop.advance(FIRST_CHECK_DELAY)
    assert harness.loop.now - start == pytest.approx(LINGER, abs=FIRST_CHECK)
    assert harness.expired == 1


def test_each_socket_is_closed_at_its_own_deadline(harness: Harness) -> None:
    harness.add(2)
    harness.loop.advance(1.5)
    harness.add(3)
    harness.loop.advance(0.6)
    assert (harness.expired, len(harness.lingering)) == (2, 3)
    harness.loop.advance(1.5)
    assert (harness.expired, len(harness.lingering)) == (5, 0)


def test_a_new_socket_does_not_wait_for_those_that_are_checked_rarely(harness: Harness) -> None:
    harness.add()
    harness.loop.advance(0.6)
    assert harness.loop.timers[0] > harness.loop.now + 0.4
    (client,) = harness.add()
    assert harness.loop.timers == [pytest.approx(harness.loop.now + FIRST_CHECK)]
    client.close()
    harness.loop.advance(FIRST_CHECK)
    assert len(harness.lingering) == 1
    assert harness.loop.timers[0] > harness.loop.now + 0.4  # back to the pace of the first socket


def test_the_first_check_of_many_comes_later_while_clients_take_longer_to_close(harness: Harness) -> None:
    def first_check_of(count: int) -> float:
        """How long new sockets wait for their first check. Their clients have closed."""
        harness.lingering.close_all()
        for client in harness.add(count):
            client.close()
        (due,) = harness.loop.timers
        return due - harness.loop.now - TIMER_SLACK

    harness.add(LEARN_FROM - 1)  # too few to tell
    harness.loop.advance(FIRST_CHECK)
    assert first_check_of(1) == pytest.approx(FIRST_CHECK_DELAY)
    harness.add(LEARN_FROM)
    harness.loop.advance(FIRST_CHECK)
    assert first_check_of(1) == pytest.approx(2 * FIRST_CHECK_DELAY)
    harness.add(LEARN_FROM)
    harness.loop.advance(LINGER)
    assert first_check_of(1) == pytest.approx(MAX_FIRST_CHECK_DELAY)
    waits: list[float] = []
    while not waits or waits[-1] > FIRST_CHECK_DELAY + TIMER_SLACK / 10:
        waits.append(first_check_of(LEARN_FROM))
        assert len(waits) < 100
        harness.loop.advance(waits[-1] + TIMER_SLACK)
        assert len(harness.lingering) == 0
    assert waits == sorted(waits, reverse=True)


def test_under_load_no_timer_fires(harness: Harness) -> None:
    """Adding sockets checks those that are due."""
    for _ in range(10):
        for client in harness.add(5):
            client.close()
        harness.loop.now += FIRST_CHECK_DELAY + TIMER_SLACK / 2
    assert harness.loop.fired == []
    assert len(harness.lingering) == 5
    assert len(harness.closed) == 45


def test_all_sockets_share_one_timer(harness: Harness) -> None:
    for _ in range(10):
        harness.add()
        harness.loop.now += TIMER_SLACK / 4
        assert len(harness.loop.timers) == 1


def test_a_linger_timeout_of_zero_closes_at_once() -> None:
    harness = Harness(seconds=0.0)
    harness.add(2)
    assert (len(harness.lingering), harness.expired, len(harness.closed)) == (0, 2, 2)
    assert harness.loop.timers == []
    harness.close()


def test_close_all(harness: Harness) -> None:
    harness.add(2)
    harness.loop.advance(0.1)
    harness.add(3)
    assert harness.lingering.close_all() == 5
    assert (len(harness.lingering), len(harness.closed), harness.expired) == (0, 5, 0)
    assert all(sock.fileno() == -1 for sock in harness.closed)
    harness.loop.advance(LINGER)
    assert len(harness.closed) == 5
    assert harness.loop.timers == []
    assert harness.lingering.close_all() == 0
    assert len(harness.closed) == 5


def test_a_reset_closes_the_socket(harness: Harness) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    harness.lingering.add_all([server])
    reset(client)
    harness.loop.advance(FIRST_CHECK)
    assert (len(harness.lingering), harness.closed, harness.expired) == (0, [server], 0)


def test_one_check_reads_from_a_socket_a_bounded_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lingering, "MAX_READS", 2)
    monkeypatch.setattr(lingering, "_discarded", bytearray(1))
    server, client = socket.socketpair()
    with server, client:
        closed: list[socket.SocketType] = []
        client.send(b"abcde")
        assert discard_input([server], closed) == ([], [server])
        assert (
            server.recv(10, socket.MSG_DONTWAIT) == b"cde"
        )  # left for the next check, after the other sockets
        assert discard_input([server], closed) == ([server], [])
        client.send(b"f")
        assert discard_input([server], closed) == ([], [server])
        client.close()
        assert discard_input([server], closed) == ([], [])
        assert closed == [server]


# -- add()


def test_sockets_of_one_turn_become_one_batch(harness: Harness) -> None:
    loop, sockets = harness.loop, harness.lingering
    for server in harness.pairs(3):
        sockets.add(server)
    assert len(sockets) == 3  # from the first moment
    assert loop.timers == []
    loop.turn()
    assert (len(sockets), len(sockets._batches)) == (3, 1)
    assert loop.timers == [pytest.approx(loop.now + FIRST_CHECK)]
    for server in harness.pairs(2):
        sockets.add(server)
    loop.turn()
    assert (len(sockets), len(sockets._batches)) == (5, 2)
    for client in harness.clients:
        client.close()
    loop.advance(FIRST_CHECK)
    assert (len(sockets), len(harness.closed), harness.expired, loop.timers) == (0, 5, 0, [])


def test_close_all_closes_the_sockets_of_this_turn_too(harness: Harness) -> None:
    servers = harness.pairs(2)
    for server in servers:
        harness.lingering.add(server)
    assert harness.lingering.close_all() == 2
    assert harness.closed == servers
    (server,) = harness.pairs(1)
    harness.lingering.add(server)  # in the same turn
    harness.loop.advance(FIRST_CHECK)
    assert len(harness.lingering) == 1
    harness.loop.advance(LINGER)
    assert (harness.closed, harness.expired) == ([*servers, server], 1)
    assert harness.loop.timers == []


def test_close_all_leaves_no_timer(harness: Harness) -> None:
    harness.add(2)
    assert len(harness.loop.timers) == 1
    harness.lingering.close_all()
    assert harness.loop.timers == []
    harness.add()
    harness.loop.advance(LINGER + TIMER_SLACK)
    assert harness.expired == 1


# -- pauses of the process


def test_after_a_pause_sockets_are_read_before_their_deadline_is_enforced(harness: Harness) -> None:
    silent, ended, sent = harness.add(3)
    harness.loop.pause(10 * LINGER)
    ended.close()
    sent.send(b"and another, ")
    harness.loop.turn()
    assert (len(harness.lingering), harness.expired) == (2, 0)
    silent.close()
    sent.close()
    harness.loop.advance(2 * FIRST_CHECK)
    assert (len(harness.lingering), harness.expired) == (0, 0)


def test_at_its_deadline_a_socket_is_read_first(harness: Harness) -> None:
    (client,) = harness.add()
    harness.loop.advance(LINGER - TIMER_SLACK)
    client.close()
    harness.loop.pause(TIMER_SLACK + 0.9 * PAUSE_SECONDS)  # no longer than a busy event loop takes
    harness.loop.turn()
    assert (len(harness.lingering), len(harness.closed), harness.expired) == (0, 1, 0)


def test_a_busy_event_loop_moves_no_deadline(harness: Harness) -> None:
    harness.add()
    harness.loop.advance(LINGER - TIMER_SLACK)
    harness.loop.pause(TIMER_SLACK + 0.9 * PAUSE_SECONDS)
    harness.loop.turn()
    assert (len(harness.lingering), harness.expired) == (0, 1)


@pytest.mark.parametrize("added", ["nothing", "a socket"])
def test_a_pause_moves_the_deadlines_that_passed_meanwhile(harness: Harness, added: str) -> None:
    """Also where the event loop accepts connections before it comes to its timers."""
    harness.add()
    harness.loop.advance(0.5)
    second = harness.loop.timers[0] - harness.loop.now  # until the next check
    harness.loop.pause(second + 10)
    if added == "a socket":
        harness.add()[0].close()
    harness.loop.turn()
    assert harness.expired == 0
    harness.loop.advance(1.4 - second)  # what was left at the time of that check, nearly
    assert (len(harness.lingering), harness.expired) == (1, 0)
    harness.loop.advance(0.2)
    assert (len(harness.lingering), harness.expired) == (0, 1)
    assert harness.loop.timers == []


def test_a_deadline_that_the_timer_was_set_for_is_moved_too(harness: Harness) -> None:
    """The client gets a moment, as it may have stood still with the server."""
    (client,) = harness.add()
    while harness.loop.timers[0] < harness.loop.now + 0.8:
        harness.loop.advance(2 * FIRST_CHECK)
    harness.loop.pause(10 * LINGER)
    harness.loop.turn()
    assert (len(harness.lingering), harness.expired) == (1, 0)
    harness.loop.advance(0.9 * PAUSE_SECONDS)
    assert (len(harness.lingering), harness.expired) == (1, 0)
    client.close()
    harness.loop.advance(0.2 * PAUSE_SECONDS)
    assert (len(harness.lingering), harness.expired) == (0, 0)


def test_the_moment_after_a_pause_is_no_longer_than_the_linger_timeout() -> None:
    harness = Harness(0.1)
    harness.add()
    harness.loop.pause(10)
    harness.loop.turn()
    assert (len(harness.lingering), harness.expired) == (1, 0)
    harness.loop.advance(0.11)
    assert (len(harness.lingering), harness.expired) == (0, 1)
    harness.close()


def test_a_second_pause_moves_no_deadline_again(harness: Harness) -> None:
    harness.add()
    harness.loop.pause(10 * LINGER)
    harness.loop.turn()
    assert (len(harness.lingering), harness.expired) == (1, 0)
    harness.loop.pause(10 * LINGER)
    harness.loop.turn()
    assert (len(harness.lingering), harness.expired) == (0, 1)
    assert harness.loop.timers == []


@settings(max_examples=30)
@given(stays=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 3)), max_size=6))
def test_no_socket_is_closed_early_or_much_later_than_its_client(stays: list[tuple[float, float]]) -> None:
    """``stays``: when each client connects, and for how long. A check comes after about twice that."""
    harness = Harness()
    start, step = harness.loop.now, FIRST_CHECK_DELAY
    slack = step + 24 * TIMER_SLACK
    added: list[tuple[float, float, socket.socket, socket.socket]] = []
    coming = sorted(stays, reverse=True)
    while harness.loop.now < start + 1 + LINGER + 2 * slack:
        while coming and start + coming[-1][0] <= harness.loop.now:
            server, client = socket.socketpair()
            added.append((harness.loop.now, coming.pop()[1], server, client))
            harness.lingering.add_all([server])
        for since, stay, _, client in added:
            if since + stay <= harness.loop.now:
                client.close()
        harness.loop.advance(step)
        for since, stay, server, _ in added:
            age = harness.loop.now - since
            if server.fileno() == -1:
                assert age >= min(stay, LINGER)
            else:
                assert age <= min(LINGER, FIRST_CHECK_DELAY + 2 * stay) + slack
    assert len(harness.lingering) == 0
    long, longer = (sum(stay > LINGER + by for _, stay in stays) for by in (-slack, slack))
    assert longer <= harness.expired <= long
    for _, _, _, client in added:
        client.close()

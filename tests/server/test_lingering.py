"""The car park in virtual time: who is looked at when, and that nothing happens when nobody is there."""

from __future__ import annotations

import heapq
import itertools
import socket
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greeter.server.lingering import FIRST_CHECK_DELAY, TIMER_SLACK, LingeringSockets, discard_input
from tests.peers import reset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LINGER = 2.0


class VirtualTimer:
    """What call_at() gives."""

    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when = when
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class VirtualLoop:
    """As much of an event loop as asks for the time and sets timers; its clock goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.fired: list[float] = []  # when timers fired
        self._timers: list[tuple[float, int, VirtualTimer]] = []
        self._serial = itertools.count()

    def time(self) -> float:
        return self.now

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

    def advance(self, seconds: float) -> None:
        """Let so much time pass, and fire the timers in it."""
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                self.now = max(self.now, when)
                self.fired.append(self.now)
                timer.call()
        self.now = end


class Lot:
    """A car park with a clock, and the clients of those who are parked there."""

    def __init__(self, seconds: float = LINGER) -> None:
        self.loop = VirtualLoop()
        self.left: list[socket.SocketType] = []
        self.late = 0
        self.clients: list[socket.socket] = []
        loop: Any = self.loop
        self.parking = LingeringSockets(loop, seconds, self.left.extend, self._on_late)

    def _on_late(self, count: int) -> None:
        self.late += count

    def park(self, count: int = 1) -> list[socket.socket]:
        """Park so many; returns their clients."""
        pairs = [socket.socketpair() for _ in range(count)]
        self.lingering.park([server for server, _ in pairs])
        clients = [client for _, client in pairs]
        self.clients += clients
        return clients

    def close(self) -> None:
        self.lingering.close_all()
        for client in self.clients:
            client.close()


@pytest.fixture
def lot() -> Iterator[Lot]:
    lot = Lot()
    yield lot
    lot.close()


def test_an_empty_one_sets_no_timer(lot: Lot) -> None:
    assert (len(lot.parking), lot.loop.timers) == (0, [])


def test_a_client_that_closes_is_let_go_at_the_first_look(lot: Lot) -> None:
    clients = lot.park(3)
    assert len(lot.parking) == 3
    assert lot.loop.timers == [pytest.approx(lot.loop.now + FIRST_CHECK_DELAY + TIMER_SLACK)]
    for client in clients:
        client.close()
    lot.loop.advance(FIRST_CHECK_DELAY + TIMER_SLACK)
    assert len(lot.parking) == 0
    assert len(lot.left) == 3
    assert all(sock.fileno() == -1 for sock in lot.left)
    assert lot.late == 0
    assert lot.loop.timers == []


def test_who_is_left_is_looked_at_less_and_less_often(lot: Lot) -> None:
    lot.park()
    start = lot.loop.now
    lot.loop.advance(LINGER + 1)
    fired = [at - start for at in lot.loop.fired]
    delays = [later - earlier for earlier, later in itertools.pairwise([0.0, *fired])]
    # Each look comes twice as long after the last as that one did, and the last one at the deadline.
    assert delays[0] == pytest.approx(FIRST_CHECK_DELAY + TIMER_SLACK)
    for shorter, longer in itertools.pairwise(delays[:-1]):
        assert longer == pytest.approx(2 * shorter, abs=3 * TIMER_SLACK)
    assert fired[-1] == pytest.approx(LINGER + TIMER_SLACK)
    assert (len(lot.parking), lot.late, len(lot.left)) == (0, 1, 1)
    assert lot.loop.timers == []


def test_whoever_talks_is_looked_at_again_soon(lot: Lot) -> None:
    (client,) = lot.park()
    lot.loop.advance(0.6)  # the next look is more than 0.4 s away
    (due,) = lot.loop.timers
    assert due > lot.loop.now + 0.4
    client.send(b"By the way, ")
    lot.loop.advance(due - lot.loop.now)
    for _ in range(3):  # as long as it goes on
        assert lot.loop.timers == [
            pytest.approx(lot.loop.now + FIRST_CHECK_DELAY + TIMER_SLACK, abs=2 * TIMER_SLACK)
        ]
        client.send(b"and another thing: ")
        lot.loop.advance(lot.loop.timers[0] - lot.loop.now)
    quiet = lot.loop.now
    lot.loop.advance(0.1)  # it has fallen silent: the delay doubles again
    delays = [later - earlier for earlier, later in itertools.pairwise([quiet, *lot.loop.fired[-4:]])]
    assert delays == sorted(delays)
    assert lot.late == 0


def test_what_clients_say_is_discarded(lot: Lot) -> None:
    (client,) = lot.park()
    client.setblocking(False)
    sent = 0
    while sent < 2_000_000:  # far more than a socket holds, so it must have been read
        try:
            sent += client.send(b"x" * 65536)
        except BlockingIOError:
            lot.loop.advance(FIRST_CHECK_DELAY + TIMER_SLACK)
    client.close()
    lot.loop.advance(2 * (FIRST_CHECK_DELAY + TIMER_SLACK))
    assert (len(lot.parking), lot.late) == (0, 0)


def test_one_that_will_not_stop_talking_is_cut_off_at_its_deadline(lot: Lot) -> None:
    (client,) = lot.park()
    start = lot.loop.now
    while len(lot.parking):
        client.send(b"and another thing: ")
        lot.loop.advance(FIRST_CHECK_DELAY)
    assert lot.loop.now - start == pytest.approx(LINGER, abs=FIRST_CHECK_DELAY + TIMER_SLACK)
    assert lot.late == 1


def test_each_is_cut_off_at_its_own_deadline(lot: Lot) -> None:
    lot.park(2)
    lot.loop.advance(1.5)
    lot.park(3)
    lot.loop.advance(0.6)
    assert (lot.late, len(lot.parking)) == (2, 3)
    lot.loop.advance(1.5)
    assert (lot.late, len(lot.parking)) == (5, 0)


def test_a_newcomer_does_not_wait_for_those_that_are_looked_at_rarely(lot: Lot) -> None:
    lot.park()
    lot.loop.advance(0.6)
    assert lot.loop.timers[0] > lot.loop.now + 0.4
    (client,) = lot.park()
    assert lot.loop.timers == [pytest.approx(lot.loop.now + FIRST_CHECK_DELAY + TIMER_SLACK)]
    client.close()
    lot.loop.advance(FIRST_CHECK_DELAY + TIMER_SLACK)
    assert len(lot.parking) == 1
    assert lot.loop.timers[0] > lot.loop.now + 0.4  # back to the first one's pace


def test_under_load_the_sweep_needs_no_timer(lot: Lot) -> None:
    """Whoever parks is awake, and takes along those whose time has come."""
    for _ in range(10):
        for client in lot.park(5):
            client.close()
        lot.loop.now += FIRST_CHECK_DELAY + TIMER_SLACK / 2
    assert lot.loop.fired == []
    assert len(lot.parking) == 5
    assert len(lot.left) == 45


def test_one_timer_is_enough_for_all(lot: Lot) -> None:
    for _ in range(10):
        lot.park()
        lot.loop.now += TIMER_SLACK / 4
        assert len(lot.loop.timers) == 1


def test_no_time_to_linger_at_all() -> None:
    lot = Lot(seconds=0.0)
    lot.park(2)
    assert (len(lot.parking), lot.late, len(lot.left)) == (0, 2, 2)
    assert lot.loop.timers == []
    lot.close()


def test_close_all(lot: Lot) -> None:
    lot.park(2)
    lot.loop.advance(0.1)
    lot.park(3)
    assert lot.lingering.close_all() == 5
    assert (len(lot.parking), len(lot.left), lot.late) == (0, 5, 0)
    assert all(sock.fileno() == -1 for sock in lot.left)
    lot.loop.advance(LINGER)
    assert len(lot.left) == 5
    assert lot.loop.timers == []
    assert lot.lingering.close_all() == 0
    assert len(lot.left) == 5


def test_a_reset_is_an_end(lot: Lot) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    lot.lingering.park([server])
    reset(client)
    lot.loop.advance(FIRST_CHECK_DELAY + TIMER_SLACK)
    assert (len(lot.parking), lot.left, lot.late) == (0, [server], 0)


def test_a_look_reads_from_one_client_a_bounded_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "READS", 2)
    monkeypatch.setattr(parking, "_discard", bytearray(1))
    server, client = socket.socketpair()
    with server, client:
        gone: list[socket.SocketType] = []
        client.send(b"abcde")
        assert discard_input([server], gone) == ([], [server])
        assert server.recv(10) == b"cde"  # and the others got their turn
        assert discard_input([server], gone) == ([server], [])
        client.send(b"f")
        assert discard_input([server], gone) == ([], [server])
        client.close()
        assert discard_input([server], gone) == ([], [])
        assert gone == [server]


@settings(deadline=None, max_examples=30)
@given(visits=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 3)), max_size=6))
def test_nobody_is_let_go_early_or_kept_much_longer_than_it_stayed(visits: list[tuple[float, float]]) -> None:
    """When each comes and for how long it stays. A look comes by after about twice that."""
    lot = Lot()
    start, step = lot.loop.now, FIRST_CHECK_DELAY
    slack = step + 24 * TIMER_SLACK
    parked: list[tuple[float, float, socket.socket, socket.socket]] = []
    coming = sorted(visits, reverse=True)
    while lot.loop.now < start + 1 + LINGER + 2 * slack:
        while coming and start + coming[-1][0] <= lot.loop.now:
            server, client = socket.socketpair()
            parked.append((lot.loop.now, coming.pop()[1], server, client))
            lot.lingering.park([server])
        for since, stay, _, client in parked:
            if since + stay <= lot.loop.now:
                client.close()
        lot.loop.advance(step)
        for since, stay, server, _ in parked:
            here = lot.loop.now - since
            if server.fileno() == -1:
                assert here >= min(stay, LINGER)
            else:
                assert here <= min(LINGER, FIRST_CHECK_DELAY + 2 * stay) + slack
    assert len(lot.parking) == 0
    long, longer = (sum(stay > LINGER + by for _, stay in visits) for by in (-slack, slack))
    assert longer <= lot.late <= long
    for _, _, _, client in parked:
        client.close()

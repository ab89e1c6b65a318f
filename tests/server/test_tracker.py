"""The reception in virtual time: deadlines, counters, complaints, and who waits for room."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Any

import pytest
from greeter.reception import COMPLAIN_SECONDS, RETRY_SECONDS, Reception
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from greeter.address import describe
from greeter.errors import GreetingError
from greeter.greeting import Greeting
from greeter.limits import Admission, Limits
from greeter.stats import FAILURES
from tests.conftest import PATIENCE
from tests.server.test_lingering import VirtualLoop

if TYPE_CHECKING:
    from greeter.stats import ServerStats

CLIENT = ("192.0.2.7", 3747)
GREET, LINGER = 10.0, 2.0


class Visitor:
    """A guest that leaves when it is told to, as a connection does."""

    def __init__(self, reception: Reception, address: Any = CLIENT, *, stubborn: bool = False) -> None:
        self.reception = reception
        self.aborted = 0
        self._address = address
        self._stubborn = stubborn  # whether the end of the connection is yet to come

    def address(self) -> Any:
        return self._address

    def abort(self) -> None:
        self.aborted += 1
        if not self._stubborn:
            self.leave()

    def leave(self) -> None:
        self.reception.left(self)


class Desk:
    """A reception whose clock stands still, and what it told its accept path."""

    def __init__(self, **options: Any) -> None:
        self.clock = VirtualLoop()
        self.told: list[str] = []
        timeouts = {"greet_timeout": GREET, "linger_timeout": LINGER}
        path = {"pause": lambda: self.told.append("pause"), "resume": lambda: self.told.append("resume")}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio, "get_running_loop", lambda: self.clock)
            self.reception = Reception(Greeting("Hello"), **{**timeouts, **path, **options})

    @property
    def stats(self) -> ServerStats:
        return self.reception.stats

    def visitor(self, **options: Any) -> Visitor:
        """One that was accepted."""
        visitor = Visitor(self.reception, **options)
        assert self.reception.arrive(visitor.address())
        return visitor

    def lingering(self) -> Visitor:
        """One that was accepted and greeted."""
        visitor = self.visitor()
        self.reception.greeted(visitor, 5)
        return visitor


@pytest.fixture
def desk() -> Desk:
    return Desk()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# -- deadlines


def test_the_greet_deadline_counts_from_the_arrival(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    visitor = desk.visitor()
    desk.reception.wait(visitor)
    desk.clock.advance(GREET - 0.1)
    assert desk.stats.failed["greet_timeout"] == 0
    desk.clock.advance(0.1)
    assert (desk.stats.failed["greet_timeout"], visitor.aborted) == (1, 1)
    assert warnings(caplog) == ["('192.0.2.7', 3747): not greeted within 10 s"]
    assert desk.reception.present == 0
    assert sum(desk.stats.failed.values()) == 1


def test_the_linger_deadline_counts_from_the_greeting(desk: Desk) -> None:
    visitor = desk.visitor()
    desk.reception.wait(visitor)
    desk.clock.advance(5)
    desk.reception.greeted(visitor, 5)
    desk.clock.advance(LINGER - 0.1)
    assert (desk.stats.linger_timeouts, desk.reception.present) == (0, 1)
    desk.clock.advance(0.1)
    assert (desk.stats.linger_timeouts, desk.reception.present, visitor.aborted) == (1, 0, 1)
    assert (desk.stats.greeted, sum(desk.stats.failed.values())) == (1, 0)


def test_a_guest_is_present_until_it_has_left(desk: Desk) -> None:
    """The end of a connection comes after abort(), one turn of the loop later or more."""
    greeted, ungreeted = desk.visitor(stubborn=True), desk.visitor(stubborn=True)
    desk.reception.greeted(greeted, 5)
    desk.reception.wait(ungreeted)
    desk.clock.advance(GREET)
    assert (greeted.aborted, ungreeted.aborted, desk.stats.linger_timeouts) == (1, 1, 1)
    desk.clock.advance(10 * LINGER)  # of which each is cut off once
    assert (greeted.aborted, desk.stats.linger_timeouts) == (1, 2)
    assert desk.reception.present == 2
    greeted.leave()
    ungreeted.leave()
    assert desk.reception.present == 0
    assert sum(desk.stats.failed.values()) == desk.stats.failed["greet_timeout"] == 1


# -- counters


def test_each_guest_ends_in_one_counter(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    reception = desk.reception
    greeted = desk.visitor()
    reception.wait(greeted)
    reception.greeted(greeted, 5)
    greeted.leave()
    at_once = desk.lingering()
    at_once.leave()
    not_made = desk.visitor()
    reception.not_made(not_made.address(), GreetingError("a bug"))
    reception.dismiss(not_made)
    not_made.leave()
    gone, gone_twice = desk.visitor(), desk.visitor()
    reception.wait(gone)
    reception.wait(gone_twice)
    gone.leave()
    gone_twice.leave()
    gone_twice.leave()
    no_tls = desk.visitor()
    reception.failed(no_tls, "tls")
    no_tls.leave()
    assert desk.stats.accepted == 6
    assert (desk.stats.greeted, desk.stats.bytes_sent) == (2, 10)
    assert {why: n for why, n in desk.stats.failed.items() if n} == {
        "greeting_error": 1,
        "reset": 2,
        "tls": 1,
    }
    assert reception.present == 0
    assert desk.clock.timers == []
    assert warnings(caplog) == ["('192.0.2.7', 3747): a bug"]


def test_greeted_in_bulk(desk: Desk) -> None:
    for _ in range(3):
        desk.reception.arrive(CLIENT)
    desk.reception.served(15, 0.002, 3)
    desk.reception.lost()
    assert (desk.stats.greeted, desk.stats.bytes_sent, desk.stats.failed["reset"]) == (3, 15, 1)


def test_abort_all(desk: Desk) -> None:
    waiting, lingering = desk.visitor(), desk.lingering()
    desk.reception.wait(waiting)
    server, client = socket.socketpair()
    desk.reception.parking.park([server])
    with client:
        assert desk.reception.present == 3
        assert desk.reception.abort_all() == 3
    assert (waiting.aborted, lingering.aborted, server.fileno()) == (1, 1, -1)
    assert desk.reception.present == 0
    assert {why: n for why, n in desk.stats.failed.items() if n} == {"aborted": 1}
    assert desk.reception.abort_all() == 0


# -- who comes in


def test_the_access_log_gets_whoever_is_let_in() -> None:
    log: list[Any] = []
    admission = Admission(Limits(deny=["198.51.100.0/24"]))
    desk = Desk(access_log=log.append, admission=admission)
    assert desk.reception.arrive(CLIENT)
    assert not desk.reception.arrive(("198.51.100.1", 1))
    assert desk.reception.arrive("")  # a Unix socket: its permissions have decided
    assert desk.reception.arrive(None)
    assert log == [CLIENT, "", None]
    assert desk.stats.accepted == 4
    assert desk.stats.rejected["denied"] == 1


def test_behind_a_proxy_the_header_decides() -> None:
    log: list[Any] = []
    desk = Desk(access_log=log.append, admission=Admission(Limits(allow=["192.0.2.0/24"])), proxied=True)
    assert desk.reception.arrive(("127.0.0.1", 5))
    assert log == []
    assert desk.reception.let_in(CLIENT)
    assert not desk.reception.let_in(("203.0.113.1", 5))
    assert log == [CLIENT]


def test_an_admission_is_released_when_its_client_is_gone() -> None:
    admission = Admission(Limits(max_per_ip=2))
    desk = Desk(admission=admission)
    first, second = desk.visitor(), desk.visitor()
    desk.reception.remember(first, CLIENT)
    desk.reception.remember(second, CLIENT)
    assert not desk.reception.arrive(CLIENT)
    first.leave()
    third = desk.visitor()
    desk.reception.remember(third, CLIENT)
    assert not desk.reception.arrive(CLIENT)
    assert desk.stats.rejected["per_ip"] == 2
    desk.reception.greeted(second, 5)
    second.leave()
    desk.visitor()
    desk.reception.release(CLIENT)  # gone before it could be remembered
    unix = desk.visitor(address="")  # they are not counted
    desk.reception.remember(unix, "")
    desk.reception.release("")
    unix.leave()
    assert admission.addresses == 1
    third.leave()
    assert admission.addresses == 0


def test_parked_clients_release_their_admission() -> None:
    admission = Admission(Limits(max_per_ip=1))
    desk = Desk(admission=admission)
    server, client = socket.socketpair()
    with client:
        assert desk.reception.arrive(CLIENT)
        desk.reception.remember(server, CLIENT)
        desk.reception.parking.park([server])
        assert not desk.reception.arrive(CLIENT)
    desk.clock.advance(1)
    assert desk.reception.arrive(CLIENT)


def test_turning_away_is_logged_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk(admission=Admission(Limits(deny=["192.0.2.0/24"])))
    for _ in range(5):
        for _ in range(100):
            desk.reception.arrive(CLIENT)
        desk.clock.advance(COMPLAIN_SECONDS / 2)
    desk.reception.refused("untrusted")
    assert warnings(caplog) == [
        "turning clients away: denied 1 so far",
        "turning clients away: denied 201 so far",
        "turning clients away: denied 401 so far",
    ]
    assert desk.stats.rejected["denied"] == 500


# -- when there is no room


def test_at_capacity_accepting_pauses_until_somebody_leaves(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk(capacity=2)
    first, second = desk.lingering(), desk.lingering()
    assert desk.reception.room == 0
    desk.reception.full()
    desk.reception.full()
    assert desk.told == ["pause"]
    first.leave()
    assert desk.told == ["pause", "resume"]
    second.leave()  # it is on already
    assert desk.told == ["pause", "resume"]
    assert warnings(caplog) == [
        "at 2 connections: accepting is paused, the listen queue holds those who come"
    ]


def test_beyond_capacity_it_goes_on_when_there_is_room_again() -> None:
    """asyncio accepts a few more than it should; and a reload may lower the number."""
    desk = Desk(capacity=2)
    visitors = [desk.lingering() for _ in range(4)]
    desk.reception.full()
    visitors[0].leave()
    visitors[1].leave()
    assert desk.told == ["pause"]
    visitors[2].leave()
    assert desk.told == ["pause", "resume"]


def test_a_pause_is_logged_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk(capacity=1)
    for _ in range(40):
        desk.reception.full()
        desk.clock.advance(COMPLAIN_SECONDS / 20)
        visitor = desk.lingering()
        visitor.leave()
    assert desk.told == ["pause", "resume"] * 40
    assert len(warnings(caplog)) == 2


def test_without_descriptors_it_tries_again_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    visitor = desk.lingering()
    for _ in range(3):  # one for each listener
        desk.reception.cannot_accept(OSError(24, "irrelevant"))
    assert desk.told == ["pause"]
    assert desk.stats.accept_errors == 3
    visitor.leave()  # that may or may not be a descriptor: the time is up soon anyway
    desk.clock.advance(RETRY_SECONDS - 0.001)
    assert desk.told == ["pause"]
    desk.clock.advance(0.001)
    assert desk.told == ["pause", "resume"]
    assert desk.clock.timers == []
    assert warnings(caplog) == [
        "cannot accept (too many open files): accepting is paused, the listen queue holds those who come"
    ]


def test_a_system_that_stays_without_is_asked_twice_a_second(caplog: pytest.LogCaptureFixture) -> None:
    room: Desk = Desk(resume=lambda: room.reception.cannot_accept(OSError(12, "irrelevant")))
    room.reception.cannot_accept(OSError(12, "irrelevant"))
    room.clock.advance(9.9)
    assert room.stats.accept_errors == 1 + 9.5 // RETRY_SECONDS
    assert len(warnings(caplog)) == 10


def test_a_server_that_closes_does_not_go_on() -> None:
    desk = Desk(capacity=1)
    visitor = desk.lingering()
    desk.reception.full()
    desk.reception.cannot_accept(OSError(24, "irrelevant"))
    desk.reception.stop_accepting()
    visitor.leave()
    desk.clock.advance(10)
    assert desk.told == ["pause"]
    assert desk.clock.timers == []


async def test_everybody_who_waits_for_the_end_hears_of_it() -> None:
    reception = Reception(Greeting("Hello"), greet_timeout=PATIENCE, linger_timeout=PATIENCE)
    await reception.all_left()  # nobody is here
    visitors = [Visitor(reception) for _ in range(3)]
    for visitor in visitors:
        reception.arrive(visitor.address())
        reception.greeted(visitor, 5)
    waiting = [asyncio.create_task(reception.all_left()) for _ in range(3)]
    await asyncio.sleep(0)
    visitors[0].leave()
    visitors[1].leave()
    waiting.pop().cancel()  # which is nothing to the others
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    visitors[2].leave()
    reception.greeted(visitors[0], 5)  # somebody comes before they have looked around
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    visitors[0].leave()
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*waiting)


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
        (None, socket.AF_INET, "", 0, "a client that had left"),
    ],
)
def test_what_a_client_is_called(
    desk: Desk, address: Any, family: int, host: str, port: int, text: str
) -> None:
    peer = desk.reception.peer(address, family, "127.0.0.1:9999", 7)
    assert (peer.host, peer.port, peer.family) == (host, port, family)
    assert (peer.server, peer.hostname, peer.count) == ("127.0.0.1:9999", socket.gethostname(), 7)
    assert describe(address) == text


# -- the law of the counters, whatever happens


class AnyDay(RuleBasedStateMachine):
    """Guests come, wait, are greeted, fail and leave in any order, while time goes by."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk(capacity=3, admission=Admission(Limits(max_per_ip=4)))
        self.fresh: list[Visitor] = []  # those who have not been told anything yet
        self.parked: list[socket.socket] = []

    def teardown(self) -> None:
        self.desk.reception.abort_all()
        for client in self.parked:
            client.close()

    @rule(host=st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1"]))
    def come(self, host: str) -> None:
        visitor = Visitor(self.desk.reception, (host, 1))
        if self.desk.reception.arrive(visitor.address()):
            self.desk.reception.remember(visitor, visitor.address())
            self.desk.reception.wait(visitor)
            self.fresh.append(visitor)
            if self.desk.reception.room <= 0:
                self.desk.reception.full()

    @rule()
    def come_and_park(self) -> None:
        address = ("192.0.2.3", 1)
        if self.desk.reception.arrive(address):
            server, client = socket.socketpair()
            self.parked.append(client)
            self.desk.reception.remember(server, address)
            self.desk.reception.served(5, 0.0)
            self.desk.reception.parking.park([server])

    @precondition(lambda self: self.parked)
    @rule()
    def drive_off(self) -> None:
        self.parked.pop().close()

    @precondition(lambda self: self.fresh)
    @rule(how=st.sampled_from(["greeted", "left", *FAILURES]))
    def end(self, how: str) -> None:
        visitor = self.fresh.pop()
        if visitor not in self.desk.reception.ungreeted:
            return  # its deadline has passed
        if how == "greeted":
            self.desk.reception.greeted(visitor, 5)
        elif how == "left":
            visitor.leave()
        else:
            self.desk.reception.failed(visitor, how)

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 3.0]))
    def wait(self, seconds: float) -> None:
        self.desk.clock.advance(seconds)

    @invariant()
    def it_adds_up(self) -> None:
        stats, reception = self.desk.stats, self.desk.reception
        ended = stats.greeted + sum(stats.failed.values()) + sum(stats.rejected.values())
        assert stats.accepted == ended + len(reception.ungreeted)
        assert len(reception._hosts) == reception.present
        assert len(self.desk.clock.timers) <= 3  # one for each table

    @invariant()
    def it_is_paused_only_for_want_of_room(self) -> None:
        told = self.desk.told
        assert all(a != b for a, b in zip(told, told[1:], strict=False))
        if told and told[-1] == "pause":
            assert self.desk.reception.room <= 0


TestAnyDay = AnyDay.TestCase
TestAnyDay.settings = settings(deadline=None, max_examples=40, stateful_step_count=30)

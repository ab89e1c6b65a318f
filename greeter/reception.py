"""What both accept paths share: who is here and until when, what they are told, what is written down.

The law: an accept path moves sockets, the reception decides. Neither path keeps a counter, a deadline
or a log line of its own, so they cannot drift apart.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, TypeVar

from greeter.deadlines import Deadlines
from greeter.errors import GreetingError, reason
from greeter.greeting import Greeting, Peer
from greeter.parking import Parking
from greeter.stats import ServerStats

logger = logging.getLogger("greeter")

# What accept() returns: (host, port, ...) of a TCP client, the mostly empty name of a Unix one, and
# None where the client had left before it could be asked.
Address: TypeAlias = Any
AccessLog: TypeAlias = Callable[[Address], None]


class Guest(Protocol):
    """A connection that an accept path has in its care."""

    def address(self) -> Address:
        """The client's address, as accept() gives it."""

    def abort(self) -> None:
        """Close at once, whatever is under way; the path then tells the reception that it left."""


G = TypeVar("G", bound=Guest)

# The system had no descriptor or no memory for a connection: when to ask again.
RETRY_SECONDS = 0.5
# One line a second about accepting being paused, however often it happens.
COMPLAIN_SECONDS = 1.0


class Waiting(Deadlines[G]):
    """Guests with a common patience of ``seconds``: one table, and one timer for all of them.

    The timer is set for the first deadline only and only while anybody waits, so an empty room makes
    no wake-ups. ``on_late`` is called with each guest whose deadline has passed.
    """

    __slots__ = ("_loop", "_on_late", "_timer", "seconds")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, on_late: Callable[[G], None]) -> None:
        super().__init__()
        self.seconds = seconds
        self._loop = loop
        self._on_late = on_late
        self._timer: asyncio.TimerHandle | None = None

    def admit(self, guest: G) -> None:
        """Wait for ``guest`` from now on."""
        deadline = self._loop.time() + self.seconds
        self._due[guest] = deadline
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._tick)

    def discard(self, guest: G) -> bool:
        """Wait no longer; True if the guest was here."""
        if self._due.pop(guest, None) is None:
            return False
        if self._timer is not None and not self._due:
            self._timer.cancel()
            self._timer = None
        return True

    def _tick(self) -> None:
        # The loop may fire a little early (its clock's resolution); without the slack that would be a
        # second wake-up for the same deadline.
        late = self.expire(self._loop.time() + 0.002)
        first = self.first()
        self._timer = None if first is None else self._loop.call_at(first, self._tick)
        for guest in late:
            self._on_late(guest)


class Reception:
    """The shared half of an accept path, for one server.

    ``greet_timeout`` and ``linger_timeout`` are in seconds. ``access_log`` gets the address of each
    client as it is accepted, or is None. ``capacity`` is how many may be here at once: then ``pause`` is
    called, and ``resume`` when there is room again.

    A guest of the stream path is in ``greeting`` while its greeting takes time, and in ``lingering`` from
    then until it closes; a socket of the instant path is in ``parking``.
    """

    def __init__(
        self,
        greeting: Greeting,
        *,
        greet_timeout: float,
        linger_timeout: float,
        access_log: AccessLog | None = None,
        capacity: int = 1_000_000,
        pause: Callable[[], None] = lambda: None,
        resume: Callable[[], None] = lambda: None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.loop = loop
        self.words = greeting
        self.access_log = access_log
        self.capacity = capacity
        self.stats = ServerStats()
        self.hostname = socket.gethostname()
        self.greeting: Waiting[Guest] = Waiting(loop, greet_timeout, self._greet_late)
        self.lingering: Waiting[Guest] = Waiting(loop, linger_timeout, self._linger_late)
        self.parking = Parking(loop, linger_timeout, self._fewer, self._parked_late)
        self.arriving: set[asyncio.Task[None]] = set()
        self._pause, self._resume = pause, resume
        self._paused = False
        self._retry: asyncio.TimerHandle | None = None
        self._complained = -COMPLAIN_SECONDS
        self._empty: asyncio.Future[None] | None = None

    # -- the way of a guest: arrive, perhaps wait, then greeted or failed, then left

    def arrive(self, address: Address) -> None:
        """A client was accepted."""
        self.stats.accepted += 1
        if self.access_log is not None:
            self.access_log(address)

    def wait(self, guest: Guest) -> None:
        """The greeting takes a while, to make or to send: the greet deadline counts from the first call."""
        if guest not in self.greeting:
            self.greeting.admit(guest)

    def served(self, sent: int, clients: int = 1) -> None:
        """Every byte for ``clients``, and their end of stream, are with the kernel: ``sent`` bytes in all."""
        self.stats.greeted += clients
        self.stats.bytes_sent += sent

    def greeted(self, guest: Guest, sent: int) -> None:
        """The guest was served, and from here on may linger."""
        if self.greeting:
            self.greeting.discard(guest)
        self.served(sent)
        self.lingering.admit(guest)

    def not_made(self, address: Address, error: GreetingError) -> None:
        """The greeting callable failed for this client."""
        self.stats.failed["greeting_error"] += 1
        logger.warning("%s: %s", describe(address), error)

    def failed(self, guest: Guest) -> None:
        """The guest has been counted as failed. It stays until it has ``left``."""
        self.greeting.discard(guest)
        self.lingering.admit(guest)

    def lost(self) -> None:
        """A client went away before it was greeted."""
        self.stats.failed["reset"] += 1

    def left(self, guest: Guest) -> None:
        """The guest's connection is closed."""
        if not self.lingering.discard(guest):  # neither greeted nor failed: it went by itself
            self.greeting.discard(guest)
            self.lost()
        if self._paused or self._empty is not None:
            self._fewer()

    def bring(self, task: asyncio.Task[None]) -> None:
        """A connection that was accepted elsewhere is on its way to the stream path."""
        self.arriving.add(task)
        task.add_done_callback(self._brought)

    # -- what is said

    def peer(self, address: Address, family: int, server: str) -> Peer:
        """The Peer that a greeting sees."""
        host, port = address[:2] if isinstance(address, tuple) else (_text(address), 0)
        return Peer(
            host=host,
            port=port,
            family=socket.AddressFamily(family),
            server=server,
            hostname=self.hostname,
            time=time.time(),
            count=self.stats.accepted,
        )

    # -- how many there are, and waiting until there are none

    @property
    def present(self) -> int:
        """Clients that are here: arriving, being greeted, lingering."""
        return len(self.arriving) + len(self.greeting) + len(self.lingering) + len(self.parking)

    @property
    def room(self) -> int:
        """How many more may come."""
        return self.capacity - self.present

    async def all_left(self) -> None:
        """Wait until nobody is here."""
        while self.present:
            if self._empty is None or self._empty.done():
                self._empty = self.loop.create_future()
            await asyncio.shield(self._empty)

    def abort_all(self) -> int:
        """Close everybody at once; returns how many there were."""
        unserved, served = list(self.greeting), list(self.lingering)
        for guest in unserved:
            self.stats.failed["aborted"] += 1
            self.failed(guest)
        for guest in unserved + served:
            guest.abort()
        return len(unserved) + len(served) + self.parking.close_all()

    # -- when there is no room

    def full(self) -> None:
        """Accept no more until somebody leaves."""
        self._hold_back(f"at {self.capacity} connections")

    def cannot_accept(self, error: OSError) -> None:
        """The system lacks what a connection needs: try again in a while, or when somebody leaves."""
        self.stats.accept_errors += 1
        self._hold_back(f"cannot accept ({reason(error)})")
        if self._retry is None:
            self._retry = self.loop.call_later(RETRY_SECONDS, self._go_on)

    def _hold_back(self, why: str) -> None:
        if not self._paused:
            self._paused = True
            self._pause()
        now = self.loop.time()
        if now - self._complained >= COMPLAIN_SECONDS:
            self._complained = now
            logger.warning("%s: accepting is paused, the listen queue holds those who come", why)

    def _fewer(self) -> None:
        if self._paused and self._retry is None and self.room > 0:
            self._go_on()
        if self._empty is not None and not self._empty.done() and not self.present:
            self._empty.set_result(None)

    def _go_on(self) -> None:
        self.keep_closed()
        self._resume()

    def keep_closed(self) -> None:
        """Forget about resuming: the server is closing."""
        self._paused = False
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    # -- called back

    def _brought(self, task: asyncio.Task[None]) -> None:
        self.arriving.discard(task)
        if task.cancelled() or task.exception() is not None:
            self.lost()
        if self._paused or self._empty is not None:
            self._fewer()

    def _parked_late(self, count: int) -> None:
        self.stats.linger_timeouts += count

    def _greet_late(self, guest: Guest) -> None:
        self.stats.failed["greet_timeout"] += 1
        logger.warning("%s: not greeted within %g s", describe(guest.address()), self.greeting.seconds)
        self.failed(guest)
        guest.abort()

    def _linger_late(self, guest: Guest) -> None:
        self.stats.linger_timeouts += 1
        self.lingering.admit(guest)  # until it has left
        guest.abort()


def describe(address: Address) -> str:
    """The client as log lines show it: ``('127.0.0.1', 3747)``, and never a raw newline."""
    if isinstance(address, tuple):
        return repr(address[:2])
    return repr("unix:" + _text(address)) if address is not None else "a client that had left"


def _text(address: Address) -> str:
    """A Unix socket's name: text, or bytes when it is abstract."""
    if isinstance(address, bytes):
        return address.decode(errors="backslashreplace").replace("\0", "@", 1)
    return address or ""

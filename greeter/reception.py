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
from typing import TYPE_CHECKING, Protocol, TypeAlias

from greeter.address import Address, describe, text_of
from greeter.errors import GreetingError, reason
from greeter.greeting import Greeting, Peer
from greeter.parking import Parking
from greeter.stats import ServerStats
from greeter.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Iterable

    from greeter.limits import Admission

logger = logging.getLogger("greeter")

AccessLog: TypeAlias = Callable[[Address], None]


class Guest(Protocol):
    """A connection that an accept path has in its care."""

    def address(self) -> Address:
        """The client's address, as accept() gives it."""

    def abort(self) -> None:
        """Close at once, whatever is under way; the path then tells the reception that it left."""


# The system had no descriptor or no memory for a connection: when to ask again.
RETRY_SECONDS = 0.5
# One line a second about accepting being paused, however often it happens.
COMPLAIN_SECONDS = 1.0


class Reception:
    """The shared half of an accept path, for one server.

    ``greet_timeout`` and ``linger_timeout`` are in seconds. ``access_log`` gets the address of each
    client as it is let in, or is None; ``admission`` decides who is, None lets everybody in. ``proxied``
    says that it is a PROXY header that tells who a client is. ``capacity`` is how many may be here at
    once: then ``pause`` is called, and ``resume`` when there is room again.

    A guest of the stream path is in ``ungreeted`` until it was greeted, or it is clear that it will not be,
    and then in ``lingering`` until it closes; a socket of the instant path is in ``parking``.
    """

    def __init__(
        self,
        greeting: Greeting,
        *,
        greet_timeout: float,
        linger_timeout: float,
        access_log: AccessLog | None = None,
        admission: Admission | None = None,
        proxied: bool = False,
        capacity: int = 1_000_000,
        pause: Callable[[], None] = lambda: None,
        resume: Callable[[], None] = lambda: None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.loop = loop
        self.words = greeting
        self.access_log = access_log
        self.admission = admission
        self.proxied = proxied
        self.capacity = capacity
        self.stats = ServerStats()
        self.hostname = socket.gethostname()
        self.ungreeted: Waiting[Guest] = Waiting(loop, greet_timeout, self._greet_late)
        self.lingering: Waiting[Guest] = Waiting(loop, linger_timeout, self._linger_late)
        self.parking = Parking(loop, linger_timeout, self._gone, self._parked_late)
        self._pause, self._resume = pause, resume
        self._paused = self._stopped = False
        self._retry: asyncio.TimerHandle | None = None
        self._complaints: dict[str, float] = {}  # when the next line about a matter may be written
        self._leaving: set[Guest] = set()  # cut off, and not yet gone
        self._hosts: dict[object, str] = {}  # of those whose admission is to be released
        self._empty: asyncio.Future[None] | None = None
        self._vacant: asyncio.Future[None] | None = None

    # -- the way of a guest: arrive, perhaps wait, then greeted or failed, then left

    def arrive(self, address: Address) -> bool:
        """A client was accepted. False if it may not come in: close it, and it never was here."""
        self.stats.accepted += 1
        # Behind a proxy, only the PROXY header tells who it is.
        return True if self.proxied else self.let_in(address)

    def let_in(self, address: Address) -> bool:
        """Whether the client of this address may come in; if so, it is written down."""
        if self.admission is not None and isinstance(address, tuple):
            refusal = self.admission.admit(address[0], self.loop.time())
            if refusal is not None:
                self.refused(refusal)
                return False
        if self.access_log is not None:
            try:
                self.access_log(address)
            except Exception as error:  # the client has done nothing wrong
                if self._may_complain("log"):
                    logger.error(
                        "the access log failed for %s: %r",
                        describe(address),
                        error,
                        extra={"event": "access_log"},
                    )
        return True

    def refused(self, why: str) -> None:
        """A client was turned away, for one of the REJECTIONS."""
        rejected = self.stats.rejected
        rejected[why] += 1
        if self._may_complain("refused"):
            counts = ", ".join(f"{name} {count}" for name, count in rejected.items() if count)
            logger.warning("turning clients away: %s so far", counts, extra={"event": "rejected"})

    def remember(self, client: object, address: Address) -> None:
        """The client was let in and is known by this object from here on, until it is gone."""
        if self.admission is not None and isinstance(address, tuple):
            self._hosts[client] = address[0]

    def release(self, address: Address) -> None:
        """The client was let in and is gone already."""
        if self.admission is not None and isinstance(address, tuple):
            self.admission.release(address[0])

    def wait(self, guest: Guest) -> None:
        """The guest has arrived, and is to be greeted before the greet deadline, which counts from here."""
        self.ungreeted.admit(guest)

    def served(self, sent: int, seconds: float, clients: int = 1) -> None:
        """Every byte for ``clients``, and their end of stream, are with the kernel.

        ``sent`` are the bytes of all of them, ``seconds`` what each took since it was accepted.
        """
        stats = self.stats
        stats.greeted += clients
        stats.bytes_sent += sent
        stats.greeting_time.add(seconds, clients)

    def greeted(self, guest: Guest, sent: int) -> None:
        """The guest was served, and from here on may linger."""
        now = self.loop.time()
        self.served(sent, self.ungreeted.waited(guest, now))
        self.lingering.admit(guest, now)

    def not_made(self, address: Address, error: GreetingError) -> None:
        """The greeting callable failed for this client."""
        self.stats.failed["greeting_error"] += 1
        logger.warning(
            "%s: %s", describe(address), error, extra={"event": "failed", "reason": "greeting_error"}
        )

    def failed(self, guest: Guest, why: str) -> None:
        """The guest will not be greeted, for one of the FAILURES. It stays until it has ``left``."""
        self.stats.failed[why] += 1
        self.dismiss(guest)

    def dismiss(self, guest: Guest) -> None:
        """The guest will not be greeted, and has been counted. It stays until it has ``left``."""
        self.ungreeted.discard(guest)
        self.lingering.admit(guest)

    def lost(self) -> None:
        """A client went away before it was greeted."""
        self.stats.failed["reset"] += 1

    def left(self, guest: Guest) -> None:
        """The guest's connection is closed. Saying so again changes nothing."""
        if not self.lingering.discard(guest):
            if self.ungreeted.discard(guest):
                self.lost()  # neither greeted nor dismissed: it went by itself
            self._leaving.discard(guest)
        self._gone((guest,))

    # -- what is said

    def peer(self, address: Address, family: int, server: str, count: int) -> Peer:
        """The Peer that a greeting sees; it is the client number ``count``."""
        host, port = address[:2] if isinstance(address, tuple) else (text_of(address), 0)
        return Peer(
            host=host,
            port=port,
            family=socket.AddressFamily(family),
            server=server,
            hostname=self.hostname,
            time=time.time(),
            count=count,
        )

    # -- how many there are, and waiting until there are none

    @property
    def present(self) -> int:
        """Clients that are here: being brought in, being greeted, lingering."""
        return len(self.ungreeted) + len(self.lingering) + len(self._leaving) + len(self.parking)

    @property
    def room(self) -> int:
        """How many more may come."""
        return self.capacity - self.present

    def hold(self, capacity: int) -> None:
        """Let so many in at once from here on; those who wait for room hear of it."""
        self.capacity = capacity
        self._gone(())

    async def all_left(self) -> None:
        """Wait until nobody is here."""
        while self.present:
            await asyncio.shield(self.emptied())

    def emptied(self) -> asyncio.Future[None]:
        """A future that is done when nobody is here."""
        if self._empty is None or self._empty.done():
            self._empty = self.loop.create_future()
            if not self.present:
                self._empty.set_result(None)
        return self._empty

    async def vacancy(self) -> None:
        """Wait until there is room for one more."""
        while self.room <= 0:
            if self._vacant is None or self._vacant.done():
                self._vacant = self.loop.create_future()
            await asyncio.shield(self._vacant)

    async def cut_off(self) -> int:
        """``abort_all``, but whoever was accepted this very moment is greeted first; all are gone then."""
        for _ in range(2):  # turns of the loop, within which it has a transport and its greeting
            await asyncio.sleep(0)
        left = self.abort_all()
        for _ in range(2):  # ... and the connections of the others are closed
            await asyncio.sleep(0)
        return left

    def abort_all(self) -> int:
        """Close everybody at once; returns how many there were."""
        unserved, served = list(self.ungreeted), list(self.lingering)
        for guest in unserved:
            self.failed(guest, "aborted")
        for guest in unserved + served:
            self.lingering.discard(guest)
            self._leaving.add(guest)
            guest.abort()
        return len(unserved) + len(served) + self.parking.close_all()

    # -- when there is no room

    def full(self) -> None:
        """Accept no more until somebody leaves."""
        self._hold_back(f"at {self.capacity} connections")

    def cannot_accept(self, error: OSError) -> None:
        """The system lacks what a connection needs: try again in a while."""
        self.stats.accept_errors += 1
        self._hold_back(f"cannot accept ({reason(error)})")
        if self._retry is None and not self._stopped:
            self._retry = self.loop.call_later(RETRY_SECONDS, self._go_on)

    def _hold_back(self, why: str) -> None:
        if not self._paused and not self._stopped:
            self._paused = True
            self._pause()
        if self._may_complain("paused"):
            logger.warning(
                "%s: accepting is paused, the listen queue holds those who come",
                why,
                extra={"event": "paused"},
            )

    def _may_complain(self, about: str) -> bool:
        """True once in COMPLAIN_SECONDS."""
        now = self.loop.time()
        if now < self._complaints.get(about, 0.0):
            return False
        self._complaints[about] = now + COMPLAIN_SECONDS
        return True

    def _gone(self, clients: Iterable[object]) -> None:
        """Clients have left: whoever waits for room, or for the last one, hears of it."""
        if self._hosts:
            for client in clients:
                host = self._hosts.pop(client, None)
                if host is not None and self.admission is not None:
                    self.admission.release(host)
        if self._paused and self._retry is None and self.room > 0:
            self._go_on()
        if self._empty is not None and not self._empty.done() and not self.present:
            self._empty.set_result(None)
        if self._vacant is not None and not self._vacant.done() and self.room > 0:
            self._vacant.set_result(None)

    def _go_on(self) -> None:
        self._end_pause()
        self._resume()

    def stop_accepting(self) -> None:
        """The path has stopped for good: it is neither paused nor resumed any more."""
        self._stopped = True
        self._end_pause()

    def _end_pause(self) -> None:
        self._paused = False
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    # -- called back

    def _parked_late(self, count: int) -> None:
        self.stats.linger_timeouts += count

    def _greet_late(self, guest: Guest) -> None:
        logger.warning(
            "%s: not greeted within %g s",
            describe(guest.address()),
            self.ungreeted.seconds,
            extra={"event": "failed", "reason": "greet_timeout"},
        )
        self.failed(guest, "greet_timeout")
        guest.abort()

    def _linger_late(self, guest: Guest) -> None:
        self.stats.linger_timeouts += 1
        self._leaving.add(guest)
        guest.abort()


def log_connection(address: Address) -> None:
    """The access log of a library: a record for each client on the logger "greeter"."""
    peer = describe(address)
    logger.info("Got a connection from %s", peer, extra={"event": "connection", "peer": peer})

"""A connection as the two halves of the server see it, whichever path it was accepted on.

A Conversation drives it from its preamble to the lingering close; the ConnectionTracker enforces its
deadlines.

The life of a connection::

    ACCEPTED ──> PREAMBLE ──> GREETING ──> LINGERING ──> CLOSED
       │            │            │          │    ^         ^
       ├────────────┼────────────┼─ FAILED ─┼────┴─────────┤   counted in ServerStats.failed
       ├────────────┼────────────┼──────────┼── REJECTED ──┤   counted in ServerStats.rejected
       └────────────┴────────────┴──────────┴── ABORTED ───┘   at the drain or the linger deadline

TRANSITIONS has the same arrows, and State what each state means. A connection without a preamble goes from
ACCEPTED to GREETING. One whose TLS handshake or greeting callable FAILED lingers before it is CLOSED.

There is no Connection where one call does everything: admission rejects a connection at accept, or the direct
path accepts one whose greeting is known and sends it. When a connection lingers on the direct path, its
socket alone is left (lingering.py).
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from greeter.core.address import format_peer

if TYPE_CHECKING:
    import asyncio

    from greeter.core.address import Address


class State(enum.Enum):
    """Where a connection is in its life."""

    ACCEPTED = "taken from the accept queue"
    PREAMBLE = "PROXY header, admission by the address in it, TLS handshake"
    GREETING = "the greeting is made and sent, until the kernel has every byte and the end of stream"
    LINGERING = "half-closed; what the client sends is discarded until it closes"
    REJECTED = "not admitted"
    FAILED = "not greeted: a wrong preamble, a callable that failed, the greet deadline, a reset"
    ABORTED = "cut off at the drain deadline, or at the linger deadline"
    CLOSED = "closed, and counted"


# In Python 3.11, an attribute of an enum takes five times as long to look up as a name.
ACCEPTED, PREAMBLE, GREETING, LINGERING, REJECTED, FAILED, ABORTED, CLOSED = State

TRANSITIONS: dict[State, frozenset[State]] = {
    ACCEPTED: frozenset({PREAMBLE, GREETING, REJECTED, FAILED, ABORTED}),
    PREAMBLE: frozenset({GREETING, REJECTED, FAILED, ABORTED}),
    GREETING: frozenset({LINGERING, FAILED, ABORTED}),
    LINGERING: frozenset({ABORTED, CLOSED}),
    REJECTED: frozenset({CLOSED}),
    FAILED: frozenset({LINGERING, CLOSED}),
    ABORTED: frozenset({CLOSED}),
    CLOSED: frozenset(),
}

NO_TLS = ("", "")


class Connection(ABC):
    """One connection, as a conversation sees it.

    ``state`` is set where the thing happens: by the conversation or its path on the way to LINGERING, and by
    the tracker for all other exits.

    ``address`` is the client's, as accept() or a PROXY header tells it, and ``family`` the family of that;
    ``server`` is the text of the address that it connected to; ``count`` tells which client of the server it
    is; ``tls`` is the TLS version and the subject of the client's certificate, empty without. ``key`` is what
    its admission is held by.
    """

    __slots__ = ("address", "count", "family", "key", "server", "state", "tls")

    def __init__(self, address: Address, family: int, server: str, count: int) -> None:
        self.address = address
        self.family = family
        self.server = server
        self.count = count
        self.tls = NO_TLS
        self.key: object = self
        self.state = ACCEPTED

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {format_peer(self.address)} {self.state.name}>"

    @abstractmethod
    async def receive(self, size: int) -> bytes:
        """Returns up to ``size`` bytes, none at the end of stream. Raises OSError."""

    @abstractmethod
    async def send(self, data: bytes | memoryview, *, last: bool = False) -> None:
        """Returns when the kernel has all of ``data``. ``last``: ``half_close`` follows. Raises OSError."""

    @abstractmethod
    async def result_of(self, work: asyncio.Future[bytes]) -> bytes:
        """Returns the greeting when it is made, or raises GreetingError.

        Meanwhile, a client that resets the connection aborts it, and cancels ``work``.
        """

    @abstractmethod
    async def half_close(self) -> None:
        """Send the end of stream. Raises OSError."""

    @abstractmethod
    async def linger(self) -> None:
        """Discard what the client sends until it closes, then close; or leave that to another, and return."""

    @abstractmethod
    def abort(self) -> None:
        """Close at once, whatever is under way; ``ConnectionTracker.closed`` follows, now or soon."""

    @abstractmethod
    def watch_for_reset(self) -> None:
        """The greeting takes its time: notice from here on if the client resets the connection."""

    @abstractmethod
    def last_try(self) -> bool:
        """The greet deadline has come: handle what the kernel has for us.

        Returns False if the event loop has to do so.
        """

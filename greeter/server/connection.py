"""A connection as the two halves of the server see it, whichever path it was accepted on.

A Conversation drives it from its preamble to the lingering close; the ConnectionTracker enforces its
deadlines.

The life of a connection::

    ACCEPTED ──> PREAMBLE ──> GREETING ──> LINGERING ──> CLOSED
       │            │            │                         ^
       ├────────────┼────────────┴── FAILED ───────────────┤   counted in ServerStats.failed
       ├────────────┴─────────────── REJECTED ─────────────┤   counted in ServerStats.rejected
       └──────────────────────────── ABORTED ──────────────┘   at the drain deadline, counted as failed

- ACCEPTED: taken from the accept queue. Unless a PROXY header is to tell the client's address, admission
  decides here.
- PREAMBLE: the PROXY header, admission by the address in it, the TLS handshake.
- GREETING: the greeting is made and sent. Ends when the kernel has every byte and the end of stream.
- LINGERING: half-closed; what the client sends is discarded until it closes. One whose TLS handshake or
  greeting callable failed lingers too.

A connection on the direct path whose greeting is known when it is accepted goes from ACCEPTED to LINGERING
within one call, and there is no Connection for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from greeter.core.address import Address

NO_TLS = ("", "")


class Connection(ABC):
    """One connection, as a conversation sees it.

    ``address`` is the client's, as accept() or a PROXY header tells it, and ``family`` the family of that;
    ``server`` is the text of the address that it connected to; ``count`` tells which client of the server it
    is; ``tls`` is the TLS version and the subject of the client's certificate, empty without. ``key`` is what
    its admission is held by.
    """

    __slots__ = ("address", "count", "family", "key", "server", "tls")

    def __init__(self, address: Address, family: int, server: str, count: int) -> None:
        self.address = address
        self.family = family
        self.server = server
        self.count = count
        self.tls = NO_TLS
        self.key: object = self

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

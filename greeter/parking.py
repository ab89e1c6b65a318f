"""Where greeted sockets of the instant path wait for their clients to close: one sweep for all of them.

The law: nobody is watched. A socket that has been greeted is looked at after a moment, by when almost
every client has closed, then after twice that, and so on until its linger deadline. That is one system
call for a client that behaves, where telling the event loop about each would be three; and an empty
car park makes no wake-ups.
"""

from __future__ import annotations

import heapq
from socket import MSG_DONTWAIT
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from socket import SocketType

# A client on the loopback or in the same data centre has closed after a few milliseconds.
FIRST_LOOK = 0.004
# How often a sweep reads from one client before the others get their turn.
READS = 16

# What clients say is read into this and never looked at, so all of them can share it.
_discard = bytearray(64 * 1024)


class Parking:
    """Sockets that have been greeted and half-closed.

    Each is closed when its client has closed, or ``seconds`` after it was parked. ``on_left`` is called
    after sockets were closed, with how many; ``on_late`` with how many of those were cut off.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        seconds: float,
        on_left: Callable[[list[SocketType]], None],
        on_late: Callable[[int], None],
    ) -> None:
        self.seconds = seconds
        self._loop = loop
        self._on_left = on_left
        self._on_late = on_late
        self._count = 0
        self._serial = 0
        # (when to look, a tie breaker, the delay that led there, the deadline, who)
        self._batches: list[tuple[float, int, float, float, list[SocketType]]] = []
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return self._count

    def park(self, socks: list[SocketType]) -> None:
        """Take over ``socks``, which were greeted just now."""
        now = self._loop.time()
        self._count += len(socks)
        self._push(now, FIRST_LOOK, now + self.seconds, socks)

    def close_all(self) -> int:
        """Close every socket at once; returns how many there were."""
        socks = [sock for batch in self._batches for sock in batch[4]]
        self._batches.clear()
        self._set_timer()
        self._close(socks)
        return len(socks)

    def _push(self, now: float, delay: float, deadline: float, socks: list[SocketType]) -> None:
        self._serial += 1
        due = min(now + delay, deadline)
        heapq.heappush(self._batches, (due, self._serial, delay, deadline, socks))
        if self._timer is None or due < self._timer.when():
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._batches[0][0], self._sweep) if self._batches else None

    def _sweep(self) -> None:
        """Look at every socket whose time has come."""
        self._timer = None
        now = self._loop.time()
        gone: list[SocketType] = []
        late = 0
        while self._batches and self._batches[0][0] <= now + 0.001:
            _, _, delay, deadline, socks = heapq.heappop(self._batches)
            quiet, talking = look(socks, gone)
            if deadline <= now + 0.001:
                late += len(quiet) + len(talking)
                gone += quiet + talking
                continue
            if quiet:
                self._push(now, delay * 2, deadline, quiet)
            if talking:
                self._push(now, FIRST_LOOK, deadline, talking)
        if late:
            self._on_late(late)
        if self._timer is None:
            self._set_timer()
        self._close(gone)

    def _close(self, socks: list[SocketType]) -> None:
        for sock in socks:
            sock.close()
        if socks:
            self._count -= len(socks)
            self._on_left(socks)


def look(socks: list[SocketType], gone: list[SocketType]) -> tuple[list[SocketType], list[SocketType]]:
    """Discard what clients have said; add those that have closed to ``gone``.

    Returns the others: those that were quiet, and those that talk and will want to be read from soon.
    """
    quiet: list[SocketType] = []
    talking: list[SocketType] = []
    for sock in socks:
        said = False
        try:
            for _ in range(READS):
                if not sock.recv_into(_discard, 0, MSG_DONTWAIT):
                    gone.append(sock)
                    break
                said = True
            else:
                talking.append(sock)
        except BlockingIOError:
            (talking if said else quiet).append(sock)
        except OSError:  # ECONNRESET, ETIMEDOUT: closed, one way or another
            gone.append(sock)
    return quiet, talking

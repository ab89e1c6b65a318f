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
# How long after that the timer fires, and takes along whatever is due until then.
PATIENCE = 0.002

# What clients say is read into this and never looked at, so all of them can share it.
_discard = bytearray(64 * 1024)


class Parking:
    """Sockets that have been greeted and half-closed.

    Each is closed when its client has closed, or ``seconds`` after it was parked. ``on_left`` is called
    with those that were; ``on_late`` with the number of those that were cut off.
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
        self._timer_due = 0.0

    def __len__(self) -> int:
        return self._count

    def park(self, socks: list[SocketType]) -> None:
        """Take over ``socks``, which were greeted just now."""
        now = self._loop.time()
        self._count += len(socks)
        self._push(now, FIRST_LOOK, now + self.seconds, socks)
        if self._batches[0][0] <= now:  # we are awake anyway: under load the timer is never needed
            self._sweep(now)
        else:
            self._set_timer()

    def close_all(self) -> int:
        """Close every socket at once; returns how many there were."""
        socks = [sock for batch in self._batches for sock in batch[4]]
        self._batches.clear()
        self._close(socks)
        return len(socks)

    def _push(self, now: float, delay: float, deadline: float, socks: list[SocketType]) -> None:
        self._serial += 1
        heapq.heappush(self._batches, (min(now + delay, deadline), self._serial, delay, deadline, socks))

    def _set_timer(self) -> None:
        if self._batches:
            due = self._batches[0][0] + PATIENCE
            if self._timer is not None:
                if self._timer_due <= due:
                    return
                self._timer.cancel()
            self._timer_due = due
            self._timer = self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._sweep(self._loop.time() + PATIENCE)

    def _sweep(self, now: float) -> None:
        """Look at every socket whose time has come."""
        gone: list[SocketType] = []
        late = 0
        while self._batches and self._batches[0][0] <= now:
            _, _, delay, deadline, socks = heapq.heappop(self._batches)
            quiet, talking = look(socks, gone)
            if deadline <= now:
                late += len(quiet) + len(talking)
                gone += quiet + talking
                continue
            if quiet:
                self._push(now, delay * 2, deadline, quiet)
            if talking:
                self._push(now, FIRST_LOOK, deadline, talking)
        self._set_timer()
        if late:
            self._on_late(late)
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
        reads = 0
        try:
            while sock.recv_into(_discard, 0, MSG_DONTWAIT):
                reads += 1
                if reads == READS:
                    talking.append(sock)
                    break
            else:
                gone.append(sock)
        except BlockingIOError:
            (talking if reads else quiet).append(sock)
        except OSError:  # ECONNRESET, ETIMEDOUT: closed, one way or another
            gone.append(sock)
    return quiet, talking

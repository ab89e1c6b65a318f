"""The lingering close of every connection that has been served on the direct path.

A socket that was served and half-closed is not closed yet: what its client still sends has to be read and
discarded, or the kernel answers it with a reset that can overtake the greeting (RFC 9293, 3.10.7.1; RFC 1122,
4.2.2.13). It is closed when the client has closed, or at its deadline.

Invariants:

- No socket is registered with the event loop. Each is read a moment after it was served, by when almost every
  client has closed, then after twice that time, and so on until its deadline. That is one system call for a
  client that closes at once, where registering it would take three.
- Under load, that moment grows until most clients have closed by then, and shrinks where they do. Server CPU
  of a fixed greeting to clients that take about 20 ms, without that = 1.00: 0.88 on asyncio and on uvloop
  (21 paired rounds).
- Without sockets there are no wake-ups.
- A socket is read once more before its deadline is enforced, and a pause of the whole process moves the
  deadline, once (see timeouts.py).
"""

from __future__ import annotations

import heapq
from socket import MSG_DONTWAIT
from typing import TYPE_CHECKING, NamedTuple

from greeter.server.timeouts import PAUSE_SECONDS

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from socket import SocketType

# A client on the loopback or in the same data centre has closed after a few milliseconds, one across an ocean
# after a tenth of a second.
FIRST_CHECK_DELAY = 0.004
MAX_FIRST_CHECK_DELAY = 0.064
# So many sockets in a check tell how long clients take to close. Fewer cost little, however often they are
# read.
LEARN_FROM = 8
# How often one check reads from one socket before the others get their turn.
MAX_READS = 16
# How much later than that the timer is set, to take along the sockets that are due by then.
TIMER_SLACK = 0.002

# Every socket is read into this buffer, whose contents are never looked at.
_discarded = bytearray(64 * 1024)


class _Batch(NamedTuple):
    """Sockets that were served together."""

    due: float  # when to read them next
    serial: int  # makes the order of batches total
    delay: float  # the pause before that check
    deadline: float
    postponed: bool
    socks: list[SocketType]


class LingeringSockets:
    """Sockets that have been served and half-closed.

    Args:
        loop: the event loop whose clock and timer are used.
        seconds: how long a socket may linger.
        on_closed: called with the sockets that were closed, for whatever reason.
        on_expired: called before with those of them whose deadline has come.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        seconds: float,
        on_closed: Callable[[list[SocketType]], None],
        on_expired: Callable[[list[SocketType]], None],
    ) -> None:
        self.seconds = seconds
        self._loop = loop
        self._on_closed = on_closed
        self._on_expired = on_expired
        self._count = 0
        self._serial = 0
        self._first_delay = FIRST_CHECK_DELAY
        self._batches: list[_Batch] = []  # a heap
        self._new: list[SocketType] = []  # served in this turn of the event loop
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0

    def __len__(self) -> int:
        return self._count

    def add(self, sock: SocketType) -> None:
        """Take over a socket that was served just now; those of one turn of the loop become one batch."""
        if not self._new:
            self._loop.call_soon(self._add_new)
        self._new.append(sock)
        self._count += 1

    def add_all(self, socks: list[SocketType]) -> None:
        """Take over sockets that were served just now."""
        self._count += len(socks)
        self._start(socks)

    def restart(self) -> None:
        """Read every socket as soon and as often as if it had been served just now: a stop waits for them."""
        now = self._loop.time()
        batches, self._batches = self._batches, []
        for batch in batches:
            self._push(now, FIRST_CHECK_DELAY, batch.deadline, batch.postponed, batch.socks)
        self._set_timer()

    def close_all(self) -> int:
        """Close every socket at once; returns how many there were."""
        socks = [sock for batch in self._batches for sock in batch.socks] + self._new
        self._batches.clear()
        self._new = []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._close(socks)
        return len(socks)

    def _add_new(self) -> None:
        socks, self._new = self._new, []
        if socks:
            self._start(socks)

    def _start(self, socks: list[SocketType]) -> None:
        now = self._loop.time()
        self._push(now, self._first_delay, now + self.seconds, False, socks)
        if self._batches[0].due <= now:  # under load, the timer is never needed
            # After a pause of the process, connections can be accepted before the timer rings.
            self._check(now, 0.0 if self._timer is None else now - self._timer_due)
        else:
            self._set_timer()

    def _push(
        self, now: float, delay: float, deadline: float, postponed: bool, socks: list[SocketType]
    ) -> None:
        self._serial += 1
        due = min(now + delay, deadline)
        heapq.heappush(self._batches, _Batch(due, self._serial, delay, deadline, postponed, socks))

    def _set_timer(self) -> None:
        if self._batches:
            due = self._batches[0].due + TIMER_SLACK
            if self._timer is not None:
                if self._timer_due <= due:
                    return
                self._timer.cancel()
            self._timer_due = due
            self._timer = self._loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = self._loop.time()
        self._check(now + TIMER_SLACK, now - self._timer_due)

    def _check(self, now: float, late: float = 0.0) -> None:
        """Read every socket that is due. ``late`` is how long ago that should have been, in seconds."""
        closed: list[SocketType] = []
        expired: list[SocketType] = []
        while self._batches and self._batches[0].due <= now:
            _, _, delay, deadline, postponed, socks = heapq.heappop(self._batches)
            silent, talking = discard_input(socks, closed)
            if len(socks) >= LEARN_FROM and delay <= self._first_delay:
                if len(silent) * 2 > len(socks):
                    self._first_delay = min(delay * 2, MAX_FIRST_CHECK_DELAY)
                else:
                    self._first_delay = max(self._first_delay * 15 / 16, FIRST_CHECK_DELAY)
            if deadline <= now and late > PAUSE_SECONDS and not postponed:
                # The client may have stood still too, and has a moment in any case.
                moment = min(PAUSE_SECONDS, self.seconds)
                deadline, postponed = max(deadline + late, now + moment), True
            if deadline <= now:
                expired += silent + talking
                continue
            if silent:
                self._push(now, delay * 2, deadline, postponed, silent)
            if talking:
                self._push(now, FIRST_CHECK_DELAY, deadline, postponed, talking)
        self._set_timer()
        if expired:
            self._on_expired(expired)
        self._close(closed + expired)

    def _close(self, socks: list[SocketType]) -> None:
        for sock in socks:
            sock.close()
        if socks:
            self._count -= len(socks)
            self._on_closed(socks)


def discard_input(
    socks: list[SocketType], closed: list[SocketType]
) -> tuple[list[SocketType], list[SocketType]]:
    """Read what clients have sent, and add the sockets of those that have closed to ``closed``.

    Returns:
        The sockets that had nothing to read, and those whose clients go on sending.
    """
    silent: list[SocketType] = []
    talking: list[SocketType] = []
    for sock in socks:
        reads = 0
        try:
            while sock.recv_into(_discarded, 0, MSG_DONTWAIT):
                reads += 1
                if reads == MAX_READS:
                    talking.append(sock)
                    break
            else:
                closed.append(sock)
        except BlockingIOError:
            (talking if reads else silent).append(sock)
        except OSError:  # ECONNRESET, ETIMEDOUT: closed, one way or another
            closed.append(sock)
    return silent, talking

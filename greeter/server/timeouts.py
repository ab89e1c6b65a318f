"""Deadlines that allow for a pause of the process: of connections with one common time-out, and single ones.

Invariants:

- The timer of a queue is set for the first deadline only, and only while something waits: an empty queue
  makes no wake-ups.
- A deadline measures the client and not the machine. A timer that rings more than ``PAUSE_SECONDS`` late
  tells that the process stood still (SIGSTOP, a suspended virtual machine, a starved processor), and the
  deadlines that passed meanwhile are moved by as much, once each. A timer that rings on time is enforced.
- No deadline is moved beyond that of an item that starts now, so the order of the queue stays.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, TypeVar

from greeter.core.deadlines import Deadlines

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

T = TypeVar("T")

# A timer may ring so much early (the resolution of the loop's clock is a millisecond): without the slack, the
# same deadline would cost a second wake-up.
TIMER_SLACK = 0.002
# A timer that is later than this, in seconds, was not held up by a busy event loop.
PAUSE_SECONDS = 0.5


class TimeoutQueue(Deadlines[T]):
    """Items that wait for at most ``seconds`` each.

    Args:
        loop: the event loop whose clock and timer are used.
        seconds: the time-out of each item.
        on_expired: called with each item whose deadline has passed. It must remove the item, or else the
            item expires again.
        lazy: leave the timer alone until ``set_timer`` is called. Most items of a lazy queue leave within
            milliseconds, and setting a timer for them would cost more than serving them.
    """

    __slots__ = ("_lazy", "_loop", "_on_expired", "_timer", "_timer_due", "seconds")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        seconds: float,
        on_expired: Callable[[T], None],
        *,
        lazy: bool = False,
    ) -> None:
        super().__init__()
        self.seconds = seconds
        self._loop = loop
        self._on_expired = on_expired
        self._lazy = lazy
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0

    def start(self, item: T, now: float | None = None) -> None:
        """Wait for ``item``, which must not be in the queue yet, from ``now`` on."""
        self._due[item] = (self._loop.time() if now is None else now) + self.seconds
        if not self._lazy and self._timer is None:
            self.set_timer()

    def discard(self, item: T) -> bool:
        """Stop waiting for ``item``. Returns True if it was in the queue."""
        if self._due.pop(item, None) is None:
            return False
        if self._postponed:
            self._postponed.discard(item)
        if self._timer is not None and not self._due:
            self._timer.cancel()
            self._timer = None
        return True

    def waited(self, item: T, now: float) -> float:
        """Stop waiting for ``item``. Returns how long it was in the queue, in seconds; 0 if it was not."""
        waited = self.elapsed(item, now)
        self.discard(item)
        return waited

    def elapsed(self, item: T, now: float) -> float:
        """Returns how long ``item`` has been in the queue, in seconds; 0 if it is not."""
        due = self._due.get(item)
        if due is None:
            return 0.0
        elapsed = now - due + self.seconds
        return elapsed if elapsed > 0.0 else 0.0

    def set_timer(self) -> None:
        """Set the timer for the first deadline, unless it is set or nothing waits."""
        first = self.first()
        if self._timer is None and first is not None:
            # A deadline that was moved before may have passed: the timer is not late for that.
            self._timer_due = max(first, self._loop.time())
            self._timer = self._loop.call_at(self._timer_due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = self._loop.time()
        if not self.allow_for_pause(now, now - self._timer_due):
            for item in self.due(now + TIMER_SLACK):
                if item in self._due:  # not removed on behalf of an earlier one
                    self._on_expired(item)
        self.set_timer()

    def allow_for_pause(self, now: float, late: float) -> bool:
        """A timer rang ``late`` seconds late. If that was a pause, move the deadlines that it made pass.

        The pause was longer than ``late``, and a client may have another flight of a handshake to send: each
        gets a moment at least.

        Returns True if it was a pause.
        """
        if late <= PAUSE_SECONDS:
            return False
        self.postpone(now, late, now + self.seconds, now + min(PAUSE_SECONDS, self.seconds))
        return True


class Deadline:
    """A single deadline: ``on_expired`` is called after ``seconds``, unless ``cancel`` is called before.

    Args:
        loop: the event loop whose clock and timer are used.
        seconds: the time-out.
        on_expired: called without arguments.
        grace: how much longer to wait after a pause of the process, in seconds, once.
    """

    __slots__ = ("_due", "_grace", "_loop", "_on_expired", "_timer")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        seconds: float,
        on_expired: Callable[[], object],
        *,
        grace: float = PAUSE_SECONDS,
    ) -> None:
        self._loop = loop
        self._on_expired = on_expired
        self._grace = min(grace, seconds)
        self._due = loop.time() + seconds
        self._timer = loop.call_at(self._due, self._on_timer)

    def cancel(self) -> None:
        """Forget it. A second call, and one after it has expired, change nothing."""
        self._timer.cancel()

    def cancelled(self) -> bool:
        """Return True if it was cancelled before it expired."""
        return self._timer.cancelled()

    def _on_timer(self) -> None:
        if self._loop.time() - self._due > PAUSE_SECONDS and self._grace:
            self._timer = self._loop.call_later(self._grace, self._on_expired)
        else:
            self._on_expired()


@contextlib.asynccontextmanager
async def timeout_without_pauses(
    seconds: float, *, grace: float = PAUSE_SECONDS
) -> AsyncIterator[asyncio.Timeout]:
    """``asyncio.timeout`` with a Deadline. The arguments are those of Deadline."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as timeout:
        deadline = Deadline(loop, seconds, lambda: timeout.reschedule(loop.time()), grace=grace)
        try:
            yield timeout
        finally:
            deadline.cancel()

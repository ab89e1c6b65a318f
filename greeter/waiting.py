"""Guests who wait, with a common patience, and one timer of the event loop for all of them.

The law: the timer is set for the first deadline only, and only while anybody waits, so an empty room makes
no wake-ups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from greeter.deadlines import Deadlines

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

T = TypeVar("T")


class Waiting(Deadlines[T]):
    """Guests with a common patience of ``seconds``.

    ``on_late`` is called with each whose deadline has passed; it is not here any more then.
    """

    __slots__ = ("_loop", "_on_late", "_timer", "seconds")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, on_late: Callable[[T], None]) -> None:
        super().__init__()
        self.seconds = seconds
        self._loop = loop
        self._on_late = on_late
        self._timer: asyncio.TimerHandle | None = None

    def admit(self, guest: T, now: float | None = None) -> None:
        """Wait for ``guest`` from now on."""
        self._due[guest] = deadline = (self._loop.time() if now is None else now) + self.seconds
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._tick)

    def discard(self, guest: T) -> bool:
        """Wait no longer; True if the guest was here."""
        if self._due.pop(guest, None) is None:
            return False
        if not self._due:
            self._rest()
        return True

    def waited(self, guest: T, now: float) -> float:
        """Wait no longer; returns for how many seconds the guest was here, 0 if it never was."""
        due = self._due.pop(guest, None)
        if due is None:
            return 0.0
        if not self._due:
            self._rest()
        seconds = now - due + self.seconds
        return seconds if seconds > 0 else 0.0

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        # The loop may fire a little early (its clock's resolution); without the slack that would be a
        # second wake-up for the same deadline.
        late = self.expire(self._loop.time() + 0.002)
        first = self.first()
        self._timer = None if first is None else self._loop.call_at(first, self._tick)
        for guest in late:
            self._on_late(guest)

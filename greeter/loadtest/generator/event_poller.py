"""Events of many sockets, collected by one wake-up of the event loop.

``EpollPoller`` is an epoll instance whose own descriptor is a reader of the loop. A socket is registered
once, edge-triggered for all events, and removed by closing it. So a connection costs one system call for
its events instead of five, and no callback. ``ReaderPoller`` uses the readers and writers of the loop,
where there is no epoll.

Both report ``(fd, mask)`` with these bits of epoll:

- ``READABLE``, ``WRITABLE``: as in epoll(7).
- ``FAILED``: the socket may have a pending error. ReaderPoller always sets it when connecting ends.
- ``ENDED``: the end of the peer's stream has arrived, after all of its data. ReaderPoller never sets it.

Invariants:

- The loop is woken once for all events that are pending, not once for each socket.
- ``poll`` never waits, and returns at most ``BATCH`` events of epoll.
"""

from __future__ import annotations

import select
from functools import partial
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable

READABLE, WRITABLE, FAILED, ENDED = 0x001, 0x004, 0x008, 0x2000  # EPOLLIN, OUT, ERR, RDHUP; sys/epoll.h
_EVENTS = READABLE | WRITABLE | ENDED | 1 << 31  # EPOLLET

# The maximum of events that one poll returns. A wake-up of the engine polls a few times.
BATCH = 256


class EventPoller(Protocol):
    """Reports the events of registered sockets."""

    def register(self, fd: int) -> None:
        """Report the events of ``fd``, a connecting socket: connected, readable, failed, ended."""

    def unregister(self, fd: int) -> None:
        """Report no more events of ``fd``. Must be called before the socket is closed. May be repeated."""

    def poll(self) -> list[tuple[int, int]]:
        """Return the events since the last call as ``(fd, mask)``, without waiting."""

    def close(self) -> None:
        """Unregister all sockets."""


class EpollPoller:
    """A poller with an epoll instance (Linux), for loops with ``add_reader``."""

    def __init__(self, loop: AbstractEventLoop, on_wakeup: Callable[[], None]) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self.register: Callable[[int], None] = partial(self._epoll.register, eventmask=_EVENTS)
        self.poll: Callable[[], list[tuple[int, int]]] = partial(self._epoll.poll, 0, BATCH)
        loop.add_reader(self._epoll.fileno(), on_wakeup)

    def unregister(self, fd: int) -> None:
        """Do nothing: closing the socket removes it. An event that is pending may still be reported."""

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()


class ReaderPoller:
    """A poller with the readers and writers of the loop, for systems without epoll."""

    def __init__(self, loop: AbstractEventLoop, on_wakeup: Callable[[], None]) -> None:
        self._loop, self._on_wakeup = loop, on_wakeup
        self._ready: dict[int, int] = {}
        self._registered: set[int] = set()

    def register(self, fd: int) -> None:
        self._registered.add(fd)
        self._loop.add_writer(fd, self._on_writable, fd)

    def unregister(self, fd: int) -> None:
        if fd in self._registered:
            self._registered.remove(fd)
            self._ready.pop(fd, None)
            self._loop.remove_writer(fd)
            self._loop.remove_reader(fd)

    def poll(self) -> list[tuple[int, int]]:
        ready, self._ready = self._ready, {}
        return list(ready.items())

    def close(self) -> None:
        for fd in list(self._registered):
            self.unregister(fd)

    def _on_writable(self, fd: int) -> None:
        """Connecting has succeeded or failed. From now on, only input is an event."""
        self._loop.remove_writer(fd)
        self._loop.add_reader(fd, self._add_event, fd, READABLE)
        self._add_event(fd, WRITABLE | FAILED)

    def _add_event(self, fd: int, mask: int) -> None:
        self._ready[fd] = self._ready.get(fd, 0) | mask
        self._on_wakeup()


def new_poller(loop: AbstractEventLoop, on_wakeup: Callable[[], None]) -> EventPoller:
    """Return an EpollPoller where there is epoll, else a ReaderPoller.

    Args:
        loop: the running event loop.
        on_wakeup: called in the loop when there are events to poll.
    """
    return EpollPoller(loop, on_wakeup) if hasattr(select, "epoll") else ReaderPoller(loop, on_wakeup)

"""Which sockets have something to say: epoll in the loop, or the loop alone.

The law: a loop is woken once for many sockets, not once for each. ``EpollPoller`` is a private epoll object
whose own descriptor the loop watches; a socket is registered once, edge-triggered for all that can happen
to it, and leaves by being closed. So a connection costs one system call for its events instead of five,
and no callback. ``ReaderPoller`` does the same with the loop's readers and writers, where there is no epoll.

Both report ``(fd, mask)`` with epoll's bits. ``FAILED`` says that the socket may have an error to tell, and
a poller that cannot know says it when connecting is over. ``ENDED`` says that the peer's end of stream has
arrived, behind all of its data; a poller that cannot know leaves it out.
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

# So many events are taken at a time; the loop gets its turn after a few times so many.
BATCH = 256


class EventPoller(Protocol):
    def register(self, fd: int) -> None:
        """Report what happens to ``fd``: connected, something to read, the end."""

    def unregister(self, fd: int) -> None:
        """Report nothing more; for a socket that is about to be closed, or has nothing more to say."""

    def poll(self) -> list[tuple[int, int]]:
        """What has on_event since the last call. It does not wait."""

    def close(self) -> None:
        """Watch nothing more."""


class EpollPoller:
    """A poller for loops that can watch a descriptor, on Linux."""

    def __init__(self, loop: AbstractEventLoop, wake: Callable[[], None]) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self.register: Callable[[int], None] = partial(self._epoll.register, eventmask=_EVENTS)
        self.poll: Callable[[], list[tuple[int, int]]] = partial(self._epoll.poll, 0, BATCH)
        loop.add_reader(self._epoll.fileno(), wake)

    def unregister(self, fd: int) -> None:
        """Nothing to do: closing it takes it out. An edge that was on its way may still be reported."""

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()


class ReaderPoller:
    """A poller for any loop with ``add_reader``."""

    def __init__(self, loop: AbstractEventLoop, wake: Callable[[], None]) -> None:
        self._loop, self._on_wakeup = loop, wake
        self._ready: dict[int, int] = {}
        self._watched: set[int] = set()

    def register(self, fd: int) -> None:
        self._watched.add(fd)
        self._loop.add_writer(fd, self._writable, fd)

    def unregister(self, fd: int) -> None:
        if fd in self._watched:
            self._watched.remove(fd)
            self._ready.pop(fd, None)
            self._loop.remove_writer(fd)
            self._loop.remove_reader(fd)

    def poll(self) -> list[tuple[int, int]]:
        ready, self._ready = self._ready, {}
        return list(ready.items())

    def close(self) -> None:
        for fd in list(self._watched):
            self.unregister(fd)

    def _writable(self, fd: int) -> None:
        """Connecting has ended, well or badly: from now on only what arrives is news."""
        self._loop.remove_writer(fd)
        self._loop.add_reader(fd, self._happened, fd, READABLE)
        self._happened(fd, WRITABLE | FAILED)

    def _happened(self, fd: int, mask: int) -> None:
        self._ready[fd] = self._ready.get(fd, 0) | mask
        self._on_wakeup()


def new_poller(loop: AbstractEventLoop, wake: Callable[[], None]) -> EventPoller:
    """The better of the two that this system has."""
    return EpollPoller(loop, wake) if hasattr(select, "epoll") else ReaderPoller(loop, wake)

"""Waiting for sockets without a transport, a future or a task for each.

One epoll instance has all the sockets that are waited for, and is itself registered with the event loop as
one reader. So a wait costs one system call and a callback, on every event loop, and ends after one event
(EPOLLONESHOT, epoll_ctl(2)).

Server CPU of a connection whose PROXY header has to be waited for, nginx in the same run = 1.00 (asyncio /
uvloop, CPython 3.11, Linux 6.18): version 1, 1.28 / 1.07 here and 1.33 / 1.73 with a task and
``loop.sock_recv``; version 2, 1.32 / 1.27 here and 1.48 / 1.79. On asyncio that alone would not be worth a
module. But one registered epoll instance also stays cheap for connections that are only watched for a reset.

Invariants:

- A descriptor is unregistered before it is closed. The kernel forgets a closed descriptor by itself only when
  no other process has inherited it, and its number may be in use again when the event comes.
- A wake-up handles a bounded number of events, so that other tasks get their turn.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
# Linux. Elsewhere, the streams path does not need them.
_EPOLL = hasattr(select, "epoll")
READABLE: int = select.EPOLLIN if _EPOLL else 0
WRITABLE: int = select.EPOLLOUT if _EPOLL else 0
# Reported whether asked for or not: the peer has reset the connection, or closed a Unix socket.
HANG_UP: int = (select.EPOLLHUP | select.EPOLLERR) if _EPOLL else 0
_ONE_SHOT: int = select.EPOLLONESHOT if _EPOLL else 0

# Events handled in one wake-up: as many as a batch of accepted connections.
MAX_EVENTS = 64


class Waiting(Protocol):
    """What waits for a socket."""

    def on_event(self, events: int) -> None:
        """The socket has these events."""


class SocketPoller:
    """Calls ``on_event`` once when a socket is ready."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._waiting: dict[int, Waiting] = {}  # by descriptor: those that are registered
        loop.add_reader(self._epoll.fileno(), self._on_ready)

    def wait(self, fd: int, events: int, waiting: Waiting) -> None:
        """Call ``waiting.on_event``, once, when there are some of ``events`` for ``fd``.

        Args:
            fd: a socket's descriptor. It stays registered until ``forget``.
            events: READABLE, WRITABLE, or 0 for HANG_UP alone, which is always reported.
            waiting: takes the place of that of an earlier call.

        Raises:
            OSError: the kernel has no memory for it (ENOMEM), or too many descriptors are watched (ENOSPC).
        """
        if fd in self._waiting:
            self._epoll.modify(fd, events | _ONE_SHOT)
        else:
            self._epoll.register(fd, events | _ONE_SHOT)
        self._waiting[fd] = waiting

    def forget(self, fd: int) -> None:
        """Wait for ``fd`` no longer. Must be called before a descriptor is closed that was waited for."""
        if self._waiting.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close(self) -> None:
        """Wait for nothing any more."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._waiting.clear()

    def _on_ready(self) -> None:
        for fd, events in self._epoll.poll(0, MAX_EVENTS):
            waiting = self._waiting.get(fd)
            if waiting is not None:
                waiting.on_event(events)

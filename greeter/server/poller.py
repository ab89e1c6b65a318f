"""Waiting for sockets without a transport, a future or a task for each.

One epoll instance has all the sockets that are waited for, and is itself registered with the event loop as
one reader. So a wait costs one system call and a callback, on every event loop, and ends after one event
(EPOLLONESHOT, epoll_ctl(2)).

Cost (CPython 3.11, Linux 6.18, server CPU for each connection whose PROXY header has to be waited for, nginx
in the same run = 1.00): see the ``proxy`` row of tests/benchmarks; ``loop.sock_recv`` in a task costs about
twice as much.

Invariants:

- A descriptor is unregistered before it is closed. The kernel forgets a closed descriptor by itself only when
  no other process has inherited it, and its number may be in use again when the event comes.
- A wake-up handles a bounded number of events, so that other tasks get their turn.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

# Linux. Elsewhere, the streams path does not need them.
_EPOLL = hasattr(select, "epoll")
READABLE: int = select.EPOLLIN if _EPOLL else 0
WRITABLE: int = select.EPOLLOUT if _EPOLL else 0
# Reported whether asked for or not: the peer has reset the connection, or closed a Unix socket.
HANG_UP: int = (select.EPOLLHUP | select.EPOLLERR) if _EPOLL else 0
_ONE_SHOT: int = select.EPOLLONESHOT if _EPOLL else 0

# Events handled in one wake-up: as many as a batch of accepted connections.
MAX_EVENTS = 64


class SocketPoller:
    """Calls back once when a socket is ready."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}  # of every descriptor that is registered
        loop.add_reader(self._epoll.fileno(), self._on_ready)

    def wait(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call ``callback`` with the events, once, when there are some for ``fd``.

        Args:
            fd: a socket's descriptor. It stays registered until ``forget``.
            events: READABLE, WRITABLE, or 0 for HANG_UP alone.
            callback: takes the place of that of an earlier wait.

        Raises:
            OSError: the kernel has no memory for it (ENOMEM), or too many descriptors are watched (ENOSPC).
        """
        if fd in self._callbacks:
            self._epoll.modify(fd, events | _ONE_SHOT)
        else:
            self._epoll.register(fd, events | _ONE_SHOT)
        self._callbacks[fd] = callback

    def forget(self, fd: int) -> None:
        """Wait for ``fd`` no longer. Must be called before a descriptor is closed that was waited for."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close(self) -> None:
        """Wait for nothing any more."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._callbacks.clear()

    def _on_ready(self) -> None:
        for fd, events in self._epoll.poll(0, MAX_EVENTS):
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback(events)

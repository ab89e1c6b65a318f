"""Watching the listening sockets of the direct path, and accepting a batch at a time.

Invariants:

- Watching can stop and go on at any time: the sockets stay open, and the kernel keeps the accept queue.
- A wake-up accepts a bounded batch, so that every other task gets its turn.
"""

from __future__ import annotations

import asyncio
import select
from asyncio import AbstractEventLoop
from typing import TYPE_CHECKING, Literal, Protocol

from greeter.errors import ConfigError
from greeter.server.accept_pause import RETRY_SECONDS

if TYPE_CHECKING:
    from asyncio import TimerHandle
    from collections.abc import Sequence

    from greeter.core.server_config import Accept
    from greeter.server.tracker import ConnectionTracker
    from greeter.system.listeners import Listener

# Connections accepted per wake-up: about a millisecond's worth.
ACCEPT_BATCH = 64

# So many connections in one wake-up are a sign of load. Then the socket is not watched for a moment, as a
# network card moderates its interrupts, so that the next connections come in a batch: a wake-up for every few
# of them, each fresh from the caches of another core, costs half as much again as greeting them. A client
# that connects meanwhile waits for at most this long, in seconds; without load none does.
COALESCE_THRESHOLD = 8
COALESCE_SECONDS = 0.001


class AcceptBatch(Protocol):
    """Accepts from the queue of a listener."""

    def __call__(self, listener: Listener, limit: int, /) -> int:
        """Accept up to ``limit`` connections; returns how many there were, zero when the queue is empty.

        Raises:
            OSError: the system cannot accept, for want of descriptors or memory.
        """


def watches_sockets(loop: AbstractEventLoop) -> bool:
    """Whether the loop can watch a socket, which Windows' default loop cannot."""
    watches = type(loop).add_reader is not AbstractEventLoop.add_reader
    return watches and "Proactor" not in type(loop).__name__


def supports_direct(loop: AbstractEventLoop) -> bool:
    """Whether the loop can watch a socket, and the system has epoll."""
    return watches_sockets(loop) and hasattr(select, "epoll")


def choose_path(accept: Accept, loop: AbstractEventLoop) -> Literal["direct", "streams"]:
    """The accept path that ``accept`` comes to on ``loop``. Raises ConfigError if it cannot be."""
    if accept == "streams":
        return "streams"
    if supports_direct(loop):
        return "direct"
    if accept == "direct":
        raise ConfigError("the direct accept path needs an event loop that can watch a socket, and epoll")
    return "streams"


async def drain_accept_queues(
    listeners: Sequence[Listener], accept_batch: AcceptBatch, tracker: ConnectionTracker
) -> None:
    """Accept every connection in these queues, which get no new ones, as fast as the capacity allows."""
    for listener in listeners:
        while True:
            await tracker.wait_for_capacity()
            if listener.sock.fileno() < 0:  # closed meanwhile
                return
            try:
                if not accept_batch(listener, min(ACCEPT_BATCH, tracker.free_slots)):
                    break
            except OSError as error:
                if listener.sock.fileno() < 0:
                    return
                tracker.cannot_accept(error)
                await asyncio.sleep(RETRY_SECONDS)
            await asyncio.sleep(0)  # the turn of all other tasks


class Acceptor:
    """Calls ``accept_batch`` when one of ``listeners`` has connections in its queue."""

    def __init__(
        self, tracker: ConnectionTracker, listeners: list[Listener], accept_batch: AcceptBatch
    ) -> None:
        self._tracker = tracker
        self._listeners = listeners
        self._accept_batch = accept_batch
        self._accepting = False
        self._coalescing: dict[Listener, TimerHandle] = {}

    def resume(self) -> None:
        """Begin to accept, or go on after ``pause``."""
        if not self._accepting:
            self._accepting = True
            for listener in self._listeners:
                if self._accepting:  # else one of them cannot be watched
                    self._watch(listener)

    def pause(self) -> None:
        """Accept no more for now. The accept queues stay as they are."""
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                if (timer := self._coalescing.pop(listener, None)) is not None:
                    timer.cancel()
                else:
                    self._tracker.loop.remove_reader(listener.sock.fileno())

    def _watch(self, listener: Listener) -> None:
        self._coalescing.pop(listener, None)
        try:
            self._tracker.loop.add_reader(listener.sock.fileno(), self._on_readable, listener)
        except OSError as error:  # ENOMEM, ENOSPC (epoll_ctl(2)): as if accepting had failed
            self._tracker.cannot_accept(error)

    def _on_readable(self, listener: Listener) -> None:
        tracker = self._tracker
        limit = min(ACCEPT_BATCH, tracker.free_slots)
        try:
            accepted = self._accept_batch(listener, limit)
        except OSError as error:
            if self._accepting:
                tracker.cannot_accept(error)
            return
        if not self._accepting:  # a greeting callable or the access log has closed the server
            return
        if tracker.free_slots <= 0:
            tracker.at_capacity()
        elif COALESCE_THRESHOLD <= accepted < limit:
            loop = tracker.loop
            loop.remove_reader(listener.sock.fileno())
            self._coalescing[listener] = loop.call_later(COALESCE_SECONDS, self._watch, listener)

"""Accepting by hand: watch the listening sockets, take what is in their queues a batch at a time.

The law: nobody in a listen queue is lost or forgotten. Watching can stop and go on at any time, because
the sockets stay open and the kernel keeps the queue; and a wake-up takes a bounded batch, so that every
other task gets its turn.
"""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop
from typing import TYPE_CHECKING

from greeter.reception import RETRY_SECONDS

if TYPE_CHECKING:
    from asyncio import TimerHandle
    from collections.abc import Callable, Sequence

    from greeter.listeners import Listener
    from greeter.reception import Reception

    # Takes up to so many clients from the queue of a listener; returns how many there were, zero when it is
    # empty. Raises OSError when the system cannot accept, for want of descriptors or memory.
    Take = Callable[[Listener, int], int]

# Connections accepted per wake-up: about a millisecond's worth.
ACCEPT_BATCH = 64

# So many clients in one wake-up are a sign of load. Then we look away for a moment, as a network card
# moderates its interrupts, so that the next ones come in a batch: a wake-up for every few connections,
# each fresh from the caches of another core, costs half as much again as greeting them. Whoever comes
# meanwhile waits for at most this long, in seconds; without load nobody does.
BUSY = 8
REST_SECONDS = 0.001


def can_watch(loop: AbstractEventLoop) -> bool:
    """Whether the loop can tell when a socket is readable; Windows' default loop cannot."""
    return type(loop).add_reader is not AbstractEventLoop.add_reader and "Proactor" not in type(loop).__name__


async def empty_queues(listeners: Sequence[Listener], take: Take, reception: Reception) -> None:
    """Take whoever is in these listen queues, which get nobody new, as there is room for them."""
    for listener in listeners:
        while True:
            await reception.vacancy()
            if listener.sock.fileno() < 0:  # closed meanwhile, by somebody who would not wait
                return
            try:
                if not take(listener, min(ACCEPT_BATCH, reception.room)):
                    break
            except OSError as error:
                reception.cannot_accept(error)
                await asyncio.sleep(RETRY_SECONDS)
            await asyncio.sleep(0)  # everybody else's turn


class Acceptor:
    """Calls ``take`` when there are clients in the queue of one of ``listeners``."""

    def __init__(self, reception: Reception, listeners: list[Listener], name: str, take: Take) -> None:
        self.name = name
        self.greet_queue = take
        self._reception = reception
        self._listeners = listeners
        self._accepting = False
        self._resting: dict[Listener, TimerHandle] = {}

    async def start(self) -> None:
        """Begin to accept."""
        self.resume()

    def resume(self) -> None:
        """Accept again after ``stop``."""
        if not self._accepting:
            self._accepting = True
            for listener in self._listeners:
                self._watch(listener)

    def stop(self) -> None:
        """Accept no more for now. Those in the listen queue stay there."""
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                if (timer := self._resting.pop(listener, None)) is not None:
                    timer.cancel()
                else:
                    self._reception.loop.remove_reader(listener.sock.fileno())

    def _watch(self, listener: Listener) -> None:
        self._resting.pop(listener, None)
        self._reception.loop.add_reader(listener.sock.fileno(), self._on_readable, listener)

    def _on_readable(self, listener: Listener) -> None:
        reception = self._reception
        limit = min(ACCEPT_BATCH, reception.room)
        try:
            taken = self.greet_queue(listener, limit)
        except OSError as error:
            reception.cannot_accept(error)
            return
        if reception.room <= 0:
            reception.full()
        elif BUSY <= taken < limit:
            loop = reception.loop
            loop.remove_reader(listener.sock.fileno())
            self._resting[listener] = loop.call_later(REST_SECONDS, self._watch, listener)

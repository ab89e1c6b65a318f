"""The stream path: every client gets a transport of the event loop; it serves every greeting.

The law is that of Connection: every byte, half-close, discard, close. Clients come from the listen queue by
hand, so that who is not let in costs no transport, a lack of descriptors pauses accepting instead of losing
clients (libuv would accept and hang up), and a socket that others made and serve too keeps its queue.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from greeter.connection import Connection
from greeter.listeners import DIED_IN_QUEUE

if TYPE_CHECKING:
    from greeter.address import Address
    from greeter.connection import House
    from greeter.listeners import Listener


class Stream:
    """Serves each client with a Connection in ``house``."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._reception = house.reception

    def greet_queue(self, listener: Listener, limit: int) -> int:
        """Take up to ``limit`` clients from the listen queue; returns how many there were.

        One that died in the queue ends the batch. Zero means that the queue is empty.
        Raises OSError when the system cannot accept, for want of descriptors or memory.
        """
        arrive, accept = self._reception.arrive, listener.accept_fd
        accepted = 0
        try:
            while accepted < limit:
                fd, address = accept()
                accepted += 1
                if arrive(address):
                    self.take(fd, address, listener)
                else:
                    os.close(fd)
        except BlockingIOError:
            pass  # the queue is empty
        except OSError as error:
            if error.errno not in DIED_IN_QUEUE:
                raise
            accepted += 1  # it was one of them: the queue need not be empty
        return accepted

    def take(
        self, fd: int, address: Address, listener: Listener, begun: tuple[bytes, int] | None = None
    ) -> None:
        """Serve a client that was accepted and has arrived; the descriptor is ours from here on.

        ``begun`` is its greeting and how much of that was sent already, if any of it was made.
        """
        guest = Connection(self._house, listener)
        if not self._reception.proxied:  # else its address is not yet known
            self._reception.remember(guest, address)
        guest.bring_in(fd, address, begun)

"""From a descriptor that accept() gave us to a transport of the event loop, without a task.

The law: a client that has nothing to pass before its greeting costs no task. ``connect_accepted_socket`` is
the loop's documented way, and a coroutine that waits once, for ``connection_made``; so it is begun here and
carried on when that has happened. A task for each client would cost as much as greeting it.
"""

from __future__ import annotations

import functools
import os
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine


class Accepted(socket.socket):
    """A socket that was accepted. Loops ask each for its type and family, and the enums of socket.socket,
    made anew at every question, would take longer than a system call."""

    __slots__ = ()
    type = socket.SOCK_STREAM
    family = socket.SocketType.family  # type: ignore[assignment]  # a plain int, as accept() knows it


class Descriptor:
    """All that uvloop asks of a socket: it works on the descriptor and closes it, so a socket object would be
    made, and asked of the kernel, for nothing."""

    __slots__ = ("_fd", "family")
    type = socket.SOCK_STREAM

    def __init__(self, family: int, fd: int) -> None:
        self.family = family
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        """uvloop says so when the descriptor is closed already."""


def accepted(family: int, fd: int) -> Accepted:
    """The descriptor as a non-blocking socket."""
    sock = Accepted(family, socket.SOCK_STREAM, 0, fd)
    sock.setblocking(False)
    return sock


class Handover:
    """Gives accepted descriptors transports of ``loop``."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._connect = loop.connect_accepted_socket
        self._wrap = Descriptor if type(loop).__module__.partition(".")[0] == "uvloop" else accepted

    def __call__(self, fd: int, family: int, protocol: asyncio.Protocol) -> None:
        """``protocol.connection_made`` is called in a later turn, with the transport over ``fd``.

        Raises OSError when there can be none; ``fd`` is closed then.
        """
        sock: Any = self._wrap(family, fd)
        making = self._connect(lambda: protocol, sock)
        try:
            made = making.send(None)
        except StopIteration:  # a loop that need not wait
            return
        except OSError:
            sock.close()
            if self._wrap is Descriptor:
                os.close(fd)
            raise
        except (TypeError, AttributeError, ValueError):
            if self._wrap is not Descriptor:
                sock.close()
                raise
            # An uvloop that wants a socket proper, which it may: from here on it gets one.
            self._wrap = accepted
            self(fd, family, protocol)
            return
        made.add_done_callback(functools.partial(_carry_on, making))


def _carry_on(making: Coroutine[Any, Any, Any], _made: object) -> None:
    try:
        making.send(None)
    except StopIteration:
        return

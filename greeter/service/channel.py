"""The wire between a parent and a worker: lines of JSON over a socket pair, and the worker's end of it.

The law: nobody polls. Each side hears the other through its event loop, and the end of the stream is the
death of the other side: a worker whose parent is gone is told to leave by the kernel, whatever the parent
died of.

A line is ``[name, value]``. The parent sends ``task`` (first, and once), ``report`` and ``retire``; the
worker sends ``ready``, ``stats`` (for each ``report``, and before it leaves) and ``failed``.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import TYPE_CHECKING, Any

from greeter.core.endpoint import Endpoint
from greeter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

# Tells a worker that it is one: the descriptor of its channel, then those of the listening sockets.
VARIABLE = "GREETER_WORKER"
# A line longer than this is no message of ours.
LINE_BYTES = 16 * 1024 * 1024

PARENT_GONE = "the parent process is gone"
RETIRED = "retired"  # others serve on
STOPPED = "stopped"  # nobody does


class Channel:
    """One end of a socket pair. ``sock`` becomes the channel's.

    ``on_message`` gets each message, its name and its value. ``on_end`` is called once when no more will
    come: with "" because the other side has closed or died, or with what was wrong with its last line.
    """

    def __init__(
        self, sock: socket.socket, on_message: Callable[[str, Any], None], on_end: Callable[[str], None]
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_message = on_message
        self._on_end = on_end
        self._received = bytearray()
        self._unsent = bytearray()
        self._loop: asyncio.AbstractEventLoop | None = None  # watches the socket
        self._closed = False

    def open(self) -> None:
        """Listen from now on, in the running loop."""
        if not self._closed:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._sock.fileno(), self.read)
            self._send_on()

    def send(self, name: str, value: Any = None) -> None:
        """Send at once, or as soon as the other side takes it; nobody is told if it is gone."""
        if not self._closed:
            self._unsent += json.dumps([name, value]).encode() + b"\n"
            self._send_on()

    def read(self) -> None:
        """Take in whatever has come by now."""
        while not self._closed:
            try:
                data = self._sock.recv(65536)
            except BlockingIOError:
                return
            except OSError:  # ECONNRESET: it died without reading our last words
                data = b""
            if not data:
                self._end("")
                return
            self.take_in(data)

    def take_in(self, data: bytes) -> None:
        """Deal with ``data``, which came from the other side."""
        self._received += data
        while not self._closed and (end := self._received.find(b"\n")) >= 0:
            line = bytes(self._received[:end])
            del self._received[: end + 1]
            try:
                name, value = json.loads(line)
            except (ValueError, TypeError, RecursionError):
                self._end(f"sent what is no message: {line[:80]!r}")
                return
            self._on_message(name, value)
        if len(self._received) > LINE_BYTES:
            self._end(f"sent a line of more than {LINE_BYTES} bytes")

    def close(self) -> None:
        """Neither hear nor say any more."""
        if not self._closed:
            self._closed = True
            if self._loop is not None:
                self._loop.remove_reader(self._sock.fileno())
                self._loop.remove_writer(self._sock.fileno())
            self._sock.close()

    def _end(self, why: str) -> None:
        self.close()
        self._on_end(why)

    def _send_on(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            if self._loop is not None:
                self._loop.add_writer(self._sock.fileno(), self._send_on)
            return
        except OSError:  # EPIPE: it is gone, which read() will find
            self._unsent.clear()
        if self._loop is not None:
            self._loop.remove_writer(self._sock.fileno())


class WorkerChannel:
    """The worker's end, there before the event loop is.

    ``task`` is what the parent gave this worker to do, from JSON; ``endpoints`` are the listening sockets
    that it inherited. Made by ``from_environment``; then, in the loop, ``open``, ``ready`` and at the end
    ``close``; or ``failed``.
    """

    def __init__(self, sock: socket.socket, endpoints: tuple[Endpoint, ...]) -> None:
        self.endpoints = endpoints
        self._stats: Callable[[], dict[str, Any]] | None = None
        self._leave: asyncio.Future[str] | None = None
        self._early = ""  # why to leave, if that is known before anybody waits for it
        first = bytearray()
        while b"\n" not in first:  # it was sent as we were started
            data = sock.recv(65536)
            if not data:
                sock.close()
                raise ConfigError(PARENT_GONE)
            first += data
        line, _, rest = first.partition(b"\n")
        self.task: Any = json.loads(line)[1]
        self._channel = Channel(sock, self._on_message, self._on_end)
        self._channel.take_in(bytes(rest))

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> WorkerChannel | None:
        """The channel of this process, or None if it is no worker.

        The variable is removed and close-on-exec is set, so that what this process starts is none either.
        Raises ConfigError when the variable is not a parent's.
        """
        text = environ.pop(VARIABLE, None)
        if text is None:
            return None
        try:
            fd, *listening = (int(number) for number in text.split(","))
            for each in (fd, *listening):
                os.set_inheritable(each, False)
            sock = socket.socket(fileno=fd)
        except (ValueError, OSError) as error:
            raise ConfigError(f"{VARIABLE}={text[:80]!r} was not set by a parent of workers") from error
        return cls(sock, tuple(map(Endpoint.inherited, listening)))

    def open(self, stats: Callable[[], dict[str, Any]]) -> asyncio.Future[str]:
        """A future of the reason to leave: RETIRED, STOPPED, or PARENT_GONE.

        ``stats`` is called for each report that the parent wants.
        """
        self._stats = stats
        self._leave = asyncio.get_running_loop().create_future()
        if self._early:
            self._leave.set_result(self._early)
        self._channel.open()
        return self._leave

    def ready(self) -> None:
        """This worker serves."""
        self._channel.send("ready", os.getpid())

    def failed(self, message: str) -> None:
        """This worker cannot serve, and why; it leaves then."""
        self._channel.send("failed", message)

    def close(self) -> None:
        """Report for the last time, and say no more."""
        self._report()
        self._channel.close()

    def _report(self) -> None:
        if self._stats is not None:
            self._channel.send("stats", self._stats())

    def _on_message(self, name: str, _value: object) -> None:
        if name == "report":
            self._report()
        elif name == "retire":
            self._go(RETIRED)
        elif name == "stop":
            self._go(STOPPED)

    def _on_end(self, why: str) -> None:
        self._go(PARENT_GONE if not why else f"the parent process {why}")

    def _go(self, why: str) -> None:
        if self._leave is None:
            self._early = self._early or why
        elif not self._leave.done():
            self._leave.set_result(why)

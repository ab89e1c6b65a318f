"""Messages between a parent and a worker: JSON lines over a socket pair, and the worker's end of it.

A line is ``[name, value]``. The parent sends ``task`` (first, and once), ``report``, ``retire`` and ``stop``.
The worker sends ``ready``, ``stats`` (for each ``report``, and before it exits) and ``failed``.

Invariants:

- Neither side polls: the event loop reports messages and the end of the stream.
- The end of the stream means that the other process is gone, for whatever reason. A worker whose parent is
  gone drains and exits.
- A worker ends when its parent says so or is gone, and by no signal but SIGKILL. A stop that is sent to every
  process of a service (systemd's KillMode=control-group, pkill) is then one stop, which the parent leads.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

from greeter.config.options import WORKER_VARIABLE
from greeter.core.endpoint import Endpoint
from greeter.core.stats import BLOCK_LENGTH
from greeter.errors import ConfigError
from greeter.system import interrupt
from greeter.system.anonymous_file import map_shared_words

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

# Set in the environment of a worker: the descriptor of the memory that it counts in (core/stats.py). It is a
# variable of its own, so that a parent and a worker of different versions understand each other.
COUNTERS_VARIABLE = "GREETER_WORKER_COUNTERS"
# A longer line is an error.
MAX_LINE_BYTES = 16 * 1024 * 1024

# The signals that a worker ignores. It is started with them blocked, so that none ends it while it loads.
WORKER_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

PARENT_GONE = "the parent process is gone"
RETIRED = "retired"  # other workers serve on
STOPPED = "stopped"  # the whole service stops


class Channel:
    """One end of a socket pair.

    Args:
        sock: The socket, which the channel closes.
        on_message: Called with the name and the value of each message.
        on_end: Called once, at the end of the stream: with "" if the other side has closed it or died, or
            with a description of its last line if that was not valid.
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
        self._loop: asyncio.AbstractEventLoop | None = None  # the loop that watches the socket
        self._closed = False

    def open(self) -> None:
        """Start receiving in the running event loop."""
        if not self._closed:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._sock.fileno(), self.read)
            self._flush()

    def send(self, name: str, value: Any = None) -> None:
        """Send a message, now or when the socket accepts it. Does nothing if the other side is gone.

        Args:
            name: The name of the message.
            value: A value that JSON can represent.
        """
        if not self._closed:
            self._unsent += json.dumps([name, value]).encode() + b"\n"
            self._flush()

    def read(self) -> None:
        """Receive what has arrived, without waiting."""
        while not self._closed:
            try:
                data = self._sock.recv(65536)
            except BlockingIOError:
                return
            except OSError:  # ECONNRESET: the other side died with unread input
                data = b""
            if not data:
                self._end("")
                return
            self.feed(data)

    def feed(self, data: bytes) -> None:
        """Process received bytes."""
        self._received += data
        while not self._closed and (end := self._received.find(b"\n")) >= 0:
            line = bytes(self._received[:end])
            del self._received[: end + 1]
            try:
                name, value = json.loads(line)
            except (ValueError, TypeError, RecursionError):
                self._end(f"sent an invalid message: {line[:80]!r}")
                return
            self._on_message(name, value)
        if len(self._received) > MAX_LINE_BYTES:
            self._end(f"sent a line of more than {MAX_LINE_BYTES} bytes")

    def close(self) -> None:
        """Close the socket. Later messages are neither received nor sent."""
        if not self._closed:
            self._closed = True
            if self._loop is not None:
                self._loop.remove_reader(self._sock.fileno())
                self._loop.remove_writer(self._sock.fileno())
            self._sock.close()

    def _end(self, reason: str) -> None:
        self.close()
        self._on_end(reason)

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            if self._loop is not None:
                self._loop.add_writer(self._sock.fileno(), self._flush)
            return
        except OSError:  # EPIPE: the other side is gone, which read() reports
            self._unsent.clear()
        if self._loop is not None:
            self._loop.remove_writer(self._sock.fileno())


class WorkerChannel:
    """The worker's end of the channel. It exists before the event loop.

    It is made by ``from_environment``. In the event loop, call ``open``, then ``ready`` and finally
    ``close``; or ``failed`` if the worker cannot serve.

    - ``task``: the task from the parent, as JSON has transmitted it.
    - ``endpoints``: the inherited listening sockets.
    - ``shared``: True if another service may accept from one of them, also after this one has stopped.
    - ``counters``: the memory to count in, which the parent reads; None if the parent gives none.
    """

    def __init__(
        self,
        sock: socket.socket,
        endpoints: tuple[Endpoint, ...],
        *,
        shared: bool = False,
        counters: memoryview[int] | None = None,
    ) -> None:
        self.endpoints = endpoints
        self.shared = shared
        self.counters = counters
        self._stats: Callable[[], dict[str, Any]] | None = None
        self._stop_reason: asyncio.Future[str] | None = None
        self._stopping = asyncio.Event()
        self._early_reason = ""  # the reason, if it arrives before open()
        first, data = bytearray(), b""
        while b"\n" not in data:  # the parent sends the task when it starts the worker
            data = sock.recv(65536)
            if not data:
                sock.close()
                raise ConfigError(PARENT_GONE)
            first += data
        line, _, rest = first.partition(b"\n")
        self.task: Any = json.loads(line)[1]
        self._channel = Channel(sock, self._on_message, self._on_end)
        self._channel.feed(bytes(rest))

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> WorkerChannel | None:
        """Take the channel of this process from its environment.

        The variables are removed and close-on-exec is set, so that child processes are not taken for workers.
        The signals in WORKER_SIGNALS do nothing from now on. They are unblocked, because child processes
        inherit what is blocked.

        Args:
            environ: The environment.

        Returns:
            The channel, or None if this process is not a worker.

        Raises:
            ConfigError: They were not set by a parent, or the parent is gone.
        """
        text = environ.pop(WORKER_VARIABLE, None)
        counters = environ.pop(COUNTERS_VARIABLE, "")
        if text is None:
            return None
        try:
            fd, *listening = (int(number.removesuffix("+")) for number in text.split(","))
            for each in (fd, *listening):
                os.set_inheritable(each, False)
            block = _map_counters(int(counters)) if counters else None
            sock = socket.socket(fileno=fd)
        except (ValueError, OSError) as error:
            raise ConfigError(
                f"{WORKER_VARIABLE}={text[:80]!r} was not set by a parent of workers"
            ) from error
        for number in WORKER_SIGNALS:
            signal.signal(number, interrupt.ignore)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WORKER_SIGNALS)
        interrupt.ignore_at_exit(WORKER_SIGNALS)
        endpoints = tuple(map(Endpoint.inherited, listening))
        return cls(sock, endpoints, shared="+" in text, counters=block)

    def open(self, stats: Callable[[], dict[str, Any]]) -> asyncio.Future[str]:
        """Start receiving in the running event loop.

        Args:
            stats: Returns the current counters; called for each report.

        Returns:
            A future of the reason to stop: RETIRED, STOPPED, PARENT_GONE, or a description of an invalid
            message.
        """
        self._stats = stats
        self._stop_reason = asyncio.get_running_loop().create_future()
        if self._early_reason:
            self._stop_reason.set_result(self._early_reason)
        self._channel.open()
        return self._stop_reason

    async def stopped(self) -> None:
        """Return when the parent stops the whole service, perhaps after it has retired this worker."""
        await self._stopping.wait()

    def ready(self, max_connections: int = 0) -> None:
        """Tell the parent that this worker serves, and how many connections it may have open."""
        self._channel.send("ready", max_connections)

    def failed(self, message: str) -> None:
        """Tell the parent why this worker cannot serve. The worker must exit afterwards."""
        self._channel.send("failed", message)

    def close(self) -> None:
        """Send the last report and close the channel."""
        self._report()
        self._channel.close()

    def _report(self) -> None:
        if self._stats is not None:
            self._channel.send("stats", self._stats())

    def _on_message(self, name: str, _value: object) -> None:
        if name == "report":
            self._report()
        elif name == "retire":
            self._request_stop(RETIRED)
        elif name == "stop":
            self._request_stop(STOPPED)
            self._stopping.set()

    def _on_end(self, reason: str) -> None:
        self._request_stop(PARENT_GONE if not reason else f"the parent process {reason}")

    def _request_stop(self, reason: str) -> None:
        if self._stop_reason is None:
            self._early_reason = self._early_reason or reason
        elif not self._stop_reason.done():
            self._stop_reason.set_result(reason)


def _map_counters(fd: int) -> memoryview[int] | None:
    """Return the memory to count in, and close its descriptor. None if another version made it too short."""
    try:
        return map_shared_words(fd, BLOCK_LENGTH)
    except ValueError:
        return None
    finally:
        os.close(fd)

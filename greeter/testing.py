"""Pytest fixtures to test TCP clients with: a service that greets, and services that misbehave.

A test file, or a conftest.py, names this module::

    pytest_plugins = ["greeter.testing"]

It is no entry point, which every pytest session of the environment would load. It needs pytest only.

Invariants:

- The servers run in a thread of their own, so a test may block, or be a coroutine of any event loop.
- A server listens on a free port of 127.0.0.1. It is closed when the test ends, with its connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, TypeVar, get_args

import pytest

from greeter.errors import ConfigError
from greeter.server import serve

if TYPE_CHECKING:
    import ssl as ssl_module
    from collections.abc import Coroutine, Iterator

    from greeter.core.admission import Limits
    from greeter.server import Server

T = TypeVar("T")
Hostility: TypeAlias = Literal["reset", "drip", "silence", "endless", "refuse"]

_GREETING = "220 ready\r\n"
_REFUSAL = "421 too many connections\r\n"
_HOST = "127.0.0.1"
_THREAD = "greeter.testing"  # the name of every thread
_CLOSE_SECONDS = 2.0  # for a client to close after a refusal


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that runs in another thread.

    Attributes:
        host: ``"127.0.0.1"``.
        port: Its port.
    """

    host: str
    port: int

    @property
    def address(self) -> str:
        """``host:port``, as a target of ``greet()``."""
        return f"{self.host}:{self.port}"


class StartGreetingServer(Protocol):
    """What the fixture ``greeting_server`` is."""

    def __call__(
        self,
        greeting: str | bytes = _GREETING,
        *,
        ssl: ssl_module.SSLContext | None = None,
        limits: Limits | None = None,
    ) -> RunningServer:
        """Start a server that greets every client and loses no byte. See ``greeter.serve()``."""


class StartHostileServer(Protocol):
    """What the fixture ``hostile_server`` is."""

    def __call__(
        self, kind: Hostility, greeting: str | bytes | None = None, *, interval: float = 0.05
    ) -> RunningServer:
        """Start a server that misbehaves.

        Args:
            kind: What it does to each client:

                - ``"reset"``: sends the greeting, then resets the connection.
                - ``"drip"``: sends the greeting in single bytes, then closes.
                - ``"silence"``: sends nothing, and keeps the connection open.
                - ``"endless"``: sends the greeting again and again.
                - ``"refuse"``: sends a refusal in words, then closes.
            greeting: What it sends; by default ``220 ready``, and as a refusal ``421 too many connections``.
            interval: Seconds between two bytes of ``"drip"``.
        """


@pytest.fixture
def greeting_server() -> Iterator[StartGreetingServer]:
    """A function that starts a server with a greeting, which is closed when the test ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name=_THREAD, daemon=True)
    servers: list[Server] = []

    def run(work: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    def start(
        greeting: str | bytes = _GREETING,
        *,
        ssl: ssl_module.SSLContext | None = None,
        limits: Limits | None = None,
    ) -> RunningServer:
        async def begin() -> Server:
            return await serve(greeting, _HOST, 0, ssl=ssl, limits=limits, access_log=False)

        servers.append(run(begin()))
        return RunningServer(_HOST, servers[-1].port)

    async def close() -> None:
        for server in servers:
            await server.drain(0)
        await loop.shutdown_default_executor()
        await asyncio.sleep(0)  # transports close their sockets in the loop's next turn

    thread.start()
    yield start
    run(close())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def hostile_server() -> Iterator[StartHostileServer]:
    """A function that starts a server of a hostile kind, which is closed when the test ends."""
    servers: list[_HostileServer] = []

    def start(
        kind: Hostility, greeting: str | bytes | None = None, *, interval: float = 0.05
    ) -> RunningServer:
        if kind not in get_args(Hostility):
            raise ConfigError(f"kind must be one of {', '.join(get_args(Hostility))}, not {kind!r}")
        text = (_REFUSAL if kind == "refuse" else _GREETING) if greeting is None else greeting
        servers.append(_HostileServer(kind, text.encode() if isinstance(text, str) else text, interval))
        return RunningServer(_HOST, servers[-1].port)

    yield start
    for server in servers:
        server.close()


class _HostileServer:
    """A server with a thread that accepts, and a thread for each client."""

    def __init__(self, kind: Hostility, greeting: bytes, interval: float) -> None:
        self._kind = kind
        self._greeting = greeting
        self._interval = interval
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._clients: dict[socket.socket, threading.Thread] = {}
        self._sock = socket.create_server((_HOST, 0), backlog=128)
        self.port: int = self._sock.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name=_THREAD, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the server and its connections, and wait for its threads."""
        self._closing.set()
        self._sock.shutdown(socket.SHUT_RDWR)  # ends accept()
        self._thread.join()
        self._sock.close()
        with self._lock:
            clients = dict(self._clients)
            for client in clients:
                with contextlib.suppress(OSError):  # it is not connected any more
                    client.shutdown(socket.SHUT_RDWR)
        for thread in clients.values():
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the end
            while True:
                client, _ = self._sock.accept()
                thread = threading.Thread(target=self._handle, args=(client,), name=_THREAD, daemon=True)
                with self._lock:
                    self._clients[client] = thread
                thread.start()

    def _handle(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the client has left
            self._misbehave(client)
        with self._lock:
            del self._clients[client]
            client.close()

    def _misbehave(self, client: socket.socket) -> None:
        if self._kind == "silence":
            _read_to_end(client)
        elif self._kind == "endless":
            while not self._closing.is_set():
                client.sendall(self._greeting)
        elif self._kind == "reset":
            client.sendall(self._greeting)
            # socket(7): without a time to linger, a close is a reset.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            for at in range(len(self._greeting)) if self._kind == "drip" else ():
                client.sendall(self._greeting[at : at + 1])
                if self._closing.wait(self._interval):
                    return
            if self._kind == "refuse":
                client.sendall(self._greeting)
            client.shutdown(socket.SHUT_WR)
            client.settimeout(_CLOSE_SECONDS)
            _read_to_end(client)


def _read_to_end(client: socket.socket) -> None:
    while client.recv(65536):
        pass

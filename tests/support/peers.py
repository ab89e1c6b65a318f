"""Clients on raw sockets, which see exactly what the server sends."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Outcome:
    """What a client received: the bytes, and whether the connection was reset instead of closed."""

    data: bytes
    reset: bool


async def connect(port: int, *, receive_buffer: int = 0) -> socket.socket:
    """Return a connected, non-blocking socket."""
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    try:
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    return sock


async def read_to_end(sock: socket.socket) -> Outcome:
    """Read until the end of stream or a reset, then close."""
    loop = asyncio.get_running_loop()
    data = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            while chunk := await loop.sock_recv(sock, 65536):
                data += chunk
    except ConnectionResetError:
        return Outcome(bytes(data), reset=True)
    finally:
        sock.close()
    return Outcome(bytes(data), reset=False)


async def read_within_tls(
    sock: socket.socket,
    context: ssl.SSLContext,
    host: str,
    *,
    header: bytes = b"",
    say: bytes = b"",
    piece: int = 0,
) -> bytes:
    """What was heard within TLS up to close_notify; the end of the stream is behind it.

    Args:
        sock: A connected, non-blocking socket.
        context: The client's.
        host: The name to verify.
        header: What is sent before TLS begins, with the ClientHello in one segment.
        say: What is said when the handshake is done.
        piece: If not 0, at most so many bytes of the handshake are sent at once.

    Raises:
        ConnectionError: The stream ended without close_notify. The message has what was heard.
    """
    loop = asyncio.get_running_loop()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=host)
    heard, to_send, shaken = b"", header, False
    while True:
        try:
            if not shaken:
                tls.do_handshake()
                shaken = True
                if say:
                    tls.write(say)
            elif chunk := tls.read(65536):
                heard += chunk
            else:  # close_notify
                return heard
        except ssl.SSLWantReadError:
            to_send += outgoing.read()
            while piece and len(to_send) > piece:
                await loop.sock_sendall(sock, to_send[:piece])
                to_send = to_send[piece:]
                await asyncio.sleep(0.001)
            await loop.sock_sendall(sock, to_send)
            to_send = b""
            data = await loop.sock_recv(sock, 65536)
            if not data:
                raise ConnectionError(f"the end of stream within TLS, after {heard!r}") from None
            incoming.write(data)


async def send_then_read(port: int, size: int) -> Outcome:
    """Send ``size`` bytes, only then read."""
    sock = await connect(port)
    if size:
        try:
            await asyncio.get_running_loop().sock_sendall(sock, b"x" * size)
        except (BrokenPipeError, ConnectionResetError):
            sock.close()
            return Outcome(b"", reset=True)
    return await read_to_end(sock)


def reset(sock: socket.socket) -> None:
    """Close with a reset instead of an end of stream (socket(7), SO_LINGER with a time of 0)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def until(condition: Callable[[], bool], what: str) -> None:
    """Let the loop run until ``condition()``, which tests the state of the code under test, is true.

    After 100 iterations it waits for another process, and sleeps to leave it the core.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + PATIENCE
    iterations = 0
    while not condition():
        assert loop.time() < end, what
        iterations += 1
        await asyncio.sleep(0 if iterations < 100 else 0.001)


def stand_still(seconds: float) -> None:
    """Block the event loop, which sees it as a pause of the process."""
    time.sleep(seconds)

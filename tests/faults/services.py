"""The services whose calls fail, one for each path, and how a client of each is greeted."""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import trustme

from greeter.system.tls import client_context
from tests.conftest import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

GREETING = b"Thank you for connecting"
# A datagram that is not answered is asked for again after so long, in seconds.
ASK_AGAIN = 0.5
APP = """
import asyncio


async def hello(peer):
    await asyncio.sleep(0.002)
    return "Thank you for connecting"
"""
# A datagram of half the size of the greeting, which is not the greeting.
QUESTION = b"Hello, hello"
PROXY = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
RESET = struct.pack("ii", 1, 0)  # struct linger: close() resets

Behaviour = Literal["reads", "speaks", "resets"]


class Files:
    """The files that the services read.

    Args:
        directory: Where they are made.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
        authority.cert_pem.write_to_path(str(directory / "ca.pem"))
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
            str(directory / "both.pem")
        )
        (directory / "greeting").write_bytes(GREETING)
        (directory / "faultyapp.py").write_text(APP)
        self.tls = client_context(directory / "ca.pem")


@dataclass(frozen=True)
class Kind:
    """A kind of service.

    Args:
        options: Its options. ``DIR`` in them is the directory of Files, ``ROW`` a new one.
        client: How a client begins.
        metrics: Whether it is asked for its metrics.
        notifies: Whether it tells systemd of its state.
        processes: How many processes serve.
    """

    options: str
    client: Literal["plain", "proxy", "tls", "udp"] = "plain"
    metrics: bool = False
    notifies: bool = False
    processes: int = 1

    @property
    def streams(self) -> bool:
        """Whether the event loop accepts."""
        return "--accept streams" in self.options


TCP = "--listen 127.0.0.1:0 --greeting-file DIR/greeting "
PROXY_OPTIONS = "--proxy-protocol --proxy-from 127.0.0.1/32"
KINDS = {
    "direct": Kind(TCP + "--accept direct"),
    "streams": Kind(TCP + "--accept streams"),
    "async": Kind("--listen 127.0.0.1:0 --app faultyapp:hello --accept direct"),
    "direct-proxy": Kind(TCP + f"--accept direct {PROXY_OPTIONS}", "proxy"),
    "streams-proxy": Kind(TCP + f"--accept streams {PROXY_OPTIONS}", "proxy"),
    "direct-tls": Kind(TCP + "--accept direct --tls-cert DIR/both.pem", "tls"),
    "streams-tls": Kind(TCP + "--accept streams --tls-cert DIR/both.pem", "tls"),
    "full": Kind(TCP + "--accept direct --max-connections 1"),
    "unix": Kind("--listen unix:ROW/s --unix-mode 600 --greeting-file DIR/greeting"),
    "datagrams": Kind("--listen udp:127.0.0.1:0 --greeting-file DIR/greeting", "udp"),
    "datagrams-any": Kind("--listen udp::0 --greeting-file DIR/greeting", "udp"),
    "watched": Kind(TCP + "--accept direct --metrics 127.0.0.1:0", metrics=True, notifies=True),
    "workers": Kind(TCP + "--accept direct --workers 2 --tls-cert DIR/both.pem", "tls", processes=2),
}


class Client:
    """A client that has connected to a service, or is about to ask it.

    Args:
        kind: The kind of service.
        address: Its address.
        files: The files of the services.
        behaviour: It reads only, speaks first, or reads and then resets the connection.
    """

    def __init__(self, kind: Kind, address: str, files: Files, behaviour: Behaviour) -> None:
        self._kind, self._files, self._behaviour = kind, files, behaviour
        if address.startswith("unix:"):
            self._sock = socket.socket(socket.AF_UNIX)
            self._address: str | tuple[str, int] = address.removeprefix("unix:")
        else:
            host, port = address.removeprefix("udp:").rsplit(":", 1)
            datagrams = kind.client == "udp"
            family = socket.AF_INET6 if host == "[::]" else socket.AF_INET
            self._sock = socket.socket(family, socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM)
            self._address = {"[::]": "::1", "0.0.0.0": "127.0.0.1"}.get(host, host), int(port)
        self._sock.settimeout(PATIENCE)
        self._sock.connect(self._address)
        if kind.client == "udp":
            self._sock.settimeout(ASK_AGAIN)
            self._sock.send(QUESTION)

    def greeted(self) -> bool:
        """Whether it is greeted whole. Raises TimeoutError if it is neither greeted nor told."""
        with self._sock:
            if self._kind.client == "udp":
                return self._ask()
            try:
                return self._converse() == GREETING
            except TimeoutError:
                raise
            except OSError:
                return False

    def _converse(self) -> bytes:
        sock = self._sock
        if self._kind.client == "proxy":
            sock.sendall(PROXY)
        elif self._kind.client == "tls":
            sock = self._files.tls.wrap_socket(sock, server_hostname="127.0.0.1", suppress_ragged_eofs=False)
        with sock:
            if self._behaviour == "speaks":
                sock.sendall(b"Hello from the client")
            received = b""
            if self._behaviour == "resets":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                while len(received) < len(GREETING) and (data := sock.recv(1000)):
                    received += data
                return received
            while data := sock.recv(1000):
                received += data
            return received

    def _ask(self) -> bool:
        """Datagrams may be lost: a client asks twice."""
        for again in (True, False):
            try:
                return self._sock.recv(1000) == GREETING
            except OSError:
                with contextlib.suppress(OSError):
                    if again:
                        self._sock.send(QUESTION)
                        self._sock.settimeout(PATIENCE)
        return False

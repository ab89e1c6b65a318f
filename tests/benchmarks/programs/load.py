"""Closed-loop clients where there is no C compiler: arguments, classes and output are those of load.c.

It needs more CPU time than load.c, so it may be slower than the server. What a greeting costs the server is
measured on the server, and stays valid.

usage: load.py PORT AT_ONCE TOTAL SEND EXPECT
"""

from __future__ import annotations

import errno
import json
import math
import select
import socket
import sys
from time import monotonic

PATIENCE = 5.0


class Client:
    """One client; the next in its place is another."""

    __slots__ = ("began", "differs", "first_byte", "received", "sock")

    def __init__(self) -> None:
        self.received = 0
        self.differs = False
        self.first_byte = 0.0
        self.began = monotonic()
        self.sock = socket.socket()

    def connect(self, address: tuple[str, int], payload: bytes) -> int:
        """Connect and send ``payload``; returns the error number, or 0.

        A client that sends first must not give the server time to close first: it waits for the TCP
        handshake (at most PATIENCE) and sends at once.
        """
        self.sock.settimeout(PATIENCE if payload else 0)
        code = self.sock.connect_ex(address)
        if code == errno.EADDRNOTAVAIL:
            sys.exit("connect: out of ports")  # a fault of this machine, not of the server
        if payload and code == 0:
            try:
                self.sock.sendall(payload)
            except OSError as error:
                return error.errno or errno.ETIMEDOUT
            self.sock.setblocking(False)
        return 0 if code == errno.EINPROGRESS else code


class Load:
    """All of them: ``run`` returns when the last has ended."""

    def __init__(self, port: int, at_once: int, total: int, payloads: list[bytes], expect: bytes) -> None:
        self.address = ("127.0.0.1", port)
        self.at_once, self.total, self.payloads, self.expect = at_once, total, payloads, expect
        self.classes = dict.fromkeys(("greeted", "reset", "empty", "short", "wrong", "failed"), 0)
        self.times: list[float] = []
        self._started = 0
        self._epoll = select.epoll()
        self._open: dict[int, Client] = {}

    def run(self) -> dict[str, float]:
        start = monotonic()
        for _ in range(self.at_once):
            self._begin()
        while self._open:
            events = self._epoll.poll(PATIENCE)
            if not events:
                break
            for fd, _ in events:
                self._read(self._open[fd])
        seconds = monotonic() - start
        self.classes["failed"] += self.total - sum(self.classes.values())
        self.times.sort()
        return self.classes | {
            "seconds": round(seconds, 6),
            "p50_us": percentile(self.times, 0.5),
            "p99_us": percentile(self.times, 0.99),
        }

    def _begin(self) -> None:
        """Begin the next client, unless all have begun."""
        while self._started < self.total:
            self._started += 1
            client = Client()
            code = client.connect(self.address, self.payloads[self._started % len(self.payloads)])
            if code == 0:
                self._open[client.sock.fileno()] = client
                self._epoll.register(client.sock, select.EPOLLIN)
                return
            self.classes[loss(code)] += 1
            client.sock.close()

    def _end(self, client: Client, outcome: str) -> None:
        self.classes[outcome] += 1
        del self._open[client.sock.fileno()]
        client.sock.close()
        self._begin()

    def _read(self, client: Client) -> None:
        try:
            while data := client.sock.recv(65536):
                if not client.received:
                    client.first_byte = monotonic()
                if data != self.expect[client.received : client.received + len(data)]:
                    client.differs = True
                client.received += len(data)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(client, loss(error.errno))
        else:
            if client.differs:
                self._end(client, "wrong")
            elif client.received == len(self.expect):
                self.times.append((client.first_byte - client.began) * 1e6)
                self._end(client, "greeted")
            else:
                self._end(client, "short" if client.received else "empty")


def loss(code: int | None) -> str:
    """The class of a client that an error has ended."""
    return "reset" if code in (errno.ECONNRESET, errno.EPIPE) else "failed"


def percentile(times: list[float], share: float) -> float:
    """The time that a share of ``times``, which are sorted, did not exceed (the nearest rank)."""
    return round(times[max(1, math.ceil(share * len(times))) - 1], 1) if times else 0.0


if __name__ == "__main__":
    port, at_once, total = map(int, sys.argv[1:4])
    payloads = [bytes.fromhex(text) for text in sys.argv[4].split(",")]
    piece, _, count = sys.argv[5].partition("*")
    expect = bytes.fromhex(piece) * int(count or 1)
    print(json.dumps(Load(port, at_once, total, payloads, expect).run()))

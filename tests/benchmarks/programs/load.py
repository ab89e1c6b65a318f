"""Closed-loop clients where there is no C compiler: the same as load.c, to the letter of its output.

The law is that of load.c; so are the arguments. It needs more of the processor, so it may be slower than the
server; what a greeting costs the server is measured on the server all the same.

usage: load.py PORT CLIENTS TOTAL SAY EXPECT
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

    __slots__ = ("began", "first_byte", "received", "sock")

    def __init__(self) -> None:
        self.received = 0
        self.first_byte = 0.0
        self.began = monotonic()
        self.sock = socket.socket()

    def connect_and_speak(self, address: tuple[str, int], words: bytes) -> int:
        """Connect, send ``words``; returns the error, or 0.

        One who speaks first does not give the server the time to go first: such a client waits for its
        handshake (at most PATIENCE) and speaks at once.
        """
        self.sock.settimeout(PATIENCE if words else 0)
        code = self.sock.connect_ex(address)
        if code == errno.EADDRNOTAVAIL:
            sys.exit("connect: out of ports")  # our fault, not the server's
        if words and code == 0:
            try:
                self.sock.sendall(words)
            except OSError as error:
                return error.errno or errno.ETIMEDOUT
            self.sock.setblocking(False)
        return 0 if code == errno.EINPROGRESS else code


class Load:
    """All of them: ``run`` returns when the last has ended."""

    def __init__(self, port: int, clients: int, total: int, say: int, expect: int) -> None:
        self.address = ("127.0.0.1", port)
        self.clients, self.total, self.expect = clients, total, expect
        self.words = b"x" * say
        self.classes = dict.fromkeys(("greeted", "reset", "empty", "short", "failed"), 0)
        self.times: list[float] = []
        self._started = 0
        self._epoll = select.epoll()
        self._open: dict[int, Client] = {}

    def run(self) -> dict[str, float]:
        start = monotonic()
        for _ in range(self.clients):
            self._begin()
        while self._open:
            events = self._epoll.poll(PATIENCE)
            if not events:
                break
            for fd, _ in events:
                self._listen(self._open[fd])
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
            code = client.connect_and_speak(self.address, self.words)
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

    def _listen(self, client: Client) -> None:
        try:
            while data := client.sock.recv(4096):
                if not client.received:
                    client.first_byte = monotonic()
                client.received += len(data)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(client, loss(error.errno))
        else:
            if client.received == self.expect:
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
    print(json.dumps(Load(*map(int, sys.argv[1:])).run()))

"""Ports for programs that cannot be told to take any port."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port(host: str = "127.0.0.1") -> int:
    """A port of ``host`` that nothing has, for streams and datagrams.

    It is below the ports that the kernel chooses from: no client and no server on port 0 of another test gets
    it before the program that it is for.
    """
    # Not the generator that is shared: hypothesis seeds it alike in every process.
    choose = random.SystemRandom().randrange
    first = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else 32768
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(1000):
        port = choose(10_000, first) if first > 11_000 else 0
        try:
            with socket.socket(family) as stream, socket.socket(family, socket.SOCK_DGRAM) as datagrams:
                stream.bind((host, port))
                datagrams.bind((host, stream.getsockname()[1]))
                return int(stream.getsockname()[1])
        except OSError:
            continue
    raise OSError(f"{host} has no free port")

"""What a greeting costs behind a PROXY header, versions 1 and 2, beside nginx and HAProxy.

Invariants:
- Clients send the header right after they connect, and headers differ from client to client, as a proxy's
  do, so that a server gains nothing from remembering the last one.
- nginx believes the header (``set_real_ip_from``), as greeter does (``--proxy-from``).
- HAProxy greets from Lua, because in TCP mode it has no other way.
"""

from __future__ import annotations

import socket
import struct
from functools import partial
from typing import TYPE_CHECKING

from tests.benchmarks import servers
from tests.benchmarks.bench import greets
from tests.benchmarks.costs import Effort, compare

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.bench import Bench
    from tests.benchmarks.figures import Table

LIMIT = 1.5
CLIENTS = 251  # different ones; a prime, so that rounds do not repeat them in step with anything
EFFORT = Effort(greetings=(5_000, 500), rounds=(11, 1), seconds=40)

DESTINATION = ("127.0.0.1", 9999)


def version_1(host: str, port: int) -> bytes:
    """The header of a client, in the PROXY protocol's text form."""
    return b"PROXY TCP4 %s %s %d %d\r\n" % (host.encode(), DESTINATION[0].encode(), port, DESTINATION[1])


def version_2(host: str, port: int) -> bytes:
    """The header of a client, in the PROXY protocol's binary form (PROXY, TCP over IPv4)."""
    addresses = socket.inet_aton(host) + socket.inet_aton(DESTINATION[0])
    addresses += struct.pack("!HH", port, DESTINATION[1])
    return b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", 0x21, 0x11, len(addresses)) + addresses


VERSIONS: dict[str, Callable[[str, int], bytes]] = {"v1": version_1, "v2": version_2}


def run(bench: Bench) -> list[Table]:
    contenders = [
        *servers.nginx(bench, proxy=True),
        *servers.haproxy(bench, proxy=True),
        *servers.greeters(bench, options=servers.PROXY_OPTIONS),
    ]
    limits = servers.direct_limits(bench, LIMIT)
    tables = []
    with bench.serving(contenders, probe=partial(greets, payload=version_1("192.0.2.1", 4711))) as up:
        for name, header in VERSIONS.items():
            headers = [header(f"192.0.2.{number % 250 + 1}", 40_000 + number) for number in range(CLIENTS)]
            found = compare(bench, up, bench.load_that_sends(*headers), EFFORT)
            title = f"server CPU per greeting behind a PROXY {name} header"
            tables.append(found.table(f"proxy_{name}", title, limits))
    return tables

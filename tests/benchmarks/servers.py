"""The servers that are compared: greeter in every form, nginx, HAProxy, and what asyncio documents.

Invariants:
- Each of them sends the same greeting to one client after the other on a port of the loopback, with its
  default options but for what its name and its table say.
- The names of greeter's accept paths are here and nowhere else.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tests.benchmarks.bench import Contender
from tests.benchmarks.load import PROGRAMS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.benchmarks.bench import Bench, Server
    from tests.benchmarks.certificate import Certificate

NGINX = "nginx"
HAPROXY = "HAProxy, Lua"
FLOOR = "C floor"
PATTERN = "documented pattern"
THREADS = "blocking threads"

# The values of --accept. Both paths serve every kind of greeting.
DIRECT, STREAMS = "direct", "streams"
PATHS = (DIRECT, STREAMS)

# What greeter needs to read PROXY headers from the loopback.
PROXY_OPTIONS = ("--proxy-protocol", "--proxy-from", "127.0.0.0/8")


def app_options(name: str) -> list[str]:
    """The options that serve the callable of that name in programs/greetings.py."""
    return ["--app", f"tests.benchmarks.programs.greetings:{name}"]


def tls_options(certificate: Certificate) -> list[str]:
    """The options that serve TLS."""
    return ["--tls-cert", str(certificate.cert), "--tls-key", str(certificate.key)]


def greeter_name(path: str, loop: str, note: str = "") -> str:
    """The name of a row of greeter; ``note`` is behind it."""
    return f"greeter {path}, {loop}" + (f", {note}" if note else "")


def greeter(
    path: str, loop: str, *, options: Sequence[str] = (), log: bool = False, note: str = ""
) -> Contender:
    """``greeter serve`` on an accept path and a loop."""
    options = ["--accept", path, "--loop", loop, "--access-log" if log else "--no-access-log", *options]

    def command(port: int) -> list[str]:
        return [sys.executable, "-m", "greeter", "serve", "--listen", f"127.0.0.1:{port}", *options]

    return Contender(greeter_name(path, loop, note), command, ours=True)


def greeters(
    bench: Bench, *, options: Sequence[str] = (), log: bool = False, note: str = ""
) -> list[Contender]:
    """All pairs of path and loop."""
    return [
        greeter(path, loop, options=options, log=log, note=note) for path in PATHS for loop in bench.loops
    ]


def direct_limits(bench: Bench, limit: float, note: str = "") -> dict[str, float]:
    """The claim that the direct path costs at most ``limit`` × nginx, on every loop."""
    return {greeter_name(DIRECT, loop, note): limit for loop in bench.loops}


def datagram_greeters(bench: Bench) -> list[Contender]:
    """``greeter serve`` for datagrams, on every loop."""

    def serving(loop: str) -> Contender:
        command = [sys.executable, "-m", "greeter", "serve", "--loop", loop, "--no-access-log", "--listen"]
        return Contender(f"greeter, {loop}", lambda port: [*command, f"udp:127.0.0.1:{port}"], ours=True)

    return [serving(loop) for loop in bench.loops]


def nginx(
    bench: Bench,
    *,
    log: bool = False,
    proxy: bool = False,
    datagrams: bool = False,
    certificate: Certificate | None = None,
    times: int = 1,
) -> list[Contender]:
    """nginx, if it is here, with the options of ``Nginx.command``."""
    found = bench.nginx
    if isinstance(found, str):
        return []

    def command(port: int) -> list[str]:
        return found.command(
            port,
            bench.folder,
            access_log=log,
            proxy=proxy,
            datagrams=datagrams,
            certificate=certificate,
            times=times,
        )

    return [Contender(NGINX + (", access log" if log else ""), command)]


def haproxy(bench: Bench, *, proxy: bool = False, certificate: Certificate | None = None) -> list[Contender]:
    """HAProxy, if it is here, with the options of ``HAProxy.command``."""
    found = bench.haproxy
    if isinstance(found, str):
        bench.left_out[HAPROXY] = found
        return []

    def command(port: int) -> list[str]:
        return found.command(port, bench.folder, proxy=proxy, certificate=certificate)

    return [Contender(HAPROXY, command)]


def blocking_threads() -> list[Contender]:
    """As many threads as greeter has for callables, each of which serves one client after the other."""
    program = str(PROGRAMS / "blocking_threads.py")
    return [Contender(THREADS, lambda port: [sys.executable, program, str(port)])]


def patterns(bench: Bench, *options: str) -> list[Contender]:
    """The pattern that asyncio documents, on every loop; ``options`` are those of programs/pattern.py."""
    command = [sys.executable, "-m", "tests.benchmarks.programs.pattern", *options]

    def documented(loop: str) -> Contender:
        return Contender(f"{PATTERN}, {loop}", lambda port: [*command, str(port), loop])

    return [documented(loop) for loop in bench.loops]


def others(bench: Bench) -> list[Contender]:
    """With a fixed greeting: the floor, the primer's loop, and the documented pattern."""
    found = []
    if not isinstance(bench.programs, str):
        floor = bench.programs["floor"]
        found.append(Contender(FLOOR, lambda port: [floor, str(port)]))
    primer = str(PROGRAMS / "primer.py")
    found.append(Contender("primer's loop", lambda port: [sys.executable, primer, str(port)]))
    return found + patterns(bench)


def base_of(servers: Sequence[Server]) -> str:
    """The server that the others are compared with.

    Returns:
        nginx; without it the floor, or else the documented pattern, or else the first server.
    """
    up = [server.name for server in servers]
    return next((name for name in (NGINX, FLOOR, f"{PATTERN}, asyncio") if name in up), up[0])

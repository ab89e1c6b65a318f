"""Whom we compare ourselves with, and ourselves in every form.

The law: every one of them says the same 24 bytes to one client after the other on a port of the loopback,
with its default options but for what its name says.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tests.benchmarks.bench import Contender
from tests.benchmarks.load import PROGRAMS

if TYPE_CHECKING:
    from tests.benchmarks.bench import Bench, Server

NGINX = "nginx"
FLOOR = "C floor"
PATTERN = "documented pattern"
PATHS = ("instant", "stream")


def greeter_name(path: str, loop: str, *, log: bool = False) -> str:
    """The name of a row of ours."""
    return f"greeter {path}, {loop}" + (", access log" if log else "")


def greeter(path: str, loop: str, *, log: bool = False) -> Contender:
    """``greeter serve`` on an accept path and a loop."""
    options = ["--accept", path, "--loop", loop, "--access-log" if log else "--no-access-log"]

    def command(port: int) -> list[str]:
        return [sys.executable, "-m", "greeter", "serve", "--listen", f"127.0.0.1:{port}", *options]

    return Contender(greeter_name(path, loop, log=log), command, ours=True)


def greeters(bench: Bench, *, log: bool = False) -> list[Contender]:
    """All pairs of path and loop."""
    return [greeter(path, loop, log=log) for path in PATHS for loop in bench.loops]


def nginx(bench: Bench, *, log: bool = False) -> list[Contender]:
    """nginx, if it is here."""
    found = bench.nginx
    if isinstance(found, str):
        return []
    name = NGINX + (", access log" if log else "")
    return [Contender(name, lambda port: found.command(port, bench.folder, access_log=log))]


def others(bench: Bench) -> list[Contender]:
    """The floor, the primer's loop, and the pattern that asyncio documents."""
    found = []
    if not isinstance(bench.programs, str):
        floor = bench.programs["floor"]
        found.append(Contender(FLOOR, lambda port: [floor, str(port)]))
    primer = str(PROGRAMS / "primer.py")
    found.append(Contender("primer's loop", lambda port: [sys.executable, primer, str(port)]))

    def documented(loop: str) -> Contender:
        command = [sys.executable, "-m", "tests.benchmarks.programs.pattern"]
        return Contender(f"{PATTERN}, {loop}", lambda port: [*command, str(port), loop])

    return found + [documented(loop) for loop in bench.loops]


def base_of(servers: list[Server]) -> str:
    """Whom the others are compared with: nginx; without it the floor, or else what asyncio documents."""
    up = [server.name for server in servers]
    return next(name for name in (NGINX, FLOOR, f"{PATTERN}, asyncio") if name in up)

"""What a client costs in memory that waits in an async greeting, beside a bare handler.

Invariants:
- What is measured is what one more client adds. A first few hundred fill the pools that a process keeps
  anyway. Then many more connect at once, and the growth is divided by their number. The kernel's own memory
  for a socket is not in it.
- The direct path has two claims: a ratio to a bare handler of ``asyncio.start_server``, and a limit in
  bytes, which every round has to keep.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import statistics
import struct
import sys
import time
from typing import TYPE_CHECKING

from tests.benchmarks import servers
from tests.benchmarks.bench import Contender, counted, listens
from tests.benchmarks.figures import Claim, Row, Table, figure, ratio

if TYPE_CHECKING:
    from tests.benchmarks.bench import Bench, Server

LIMIT = 0.6
LIMIT_BYTES = 2_500
FIRST = 500
# Descriptors that this program and the server need for themselves, and the server holds in reserve.
SPARE = 100
PATIENCE = 20.0


def run(bench: Bench) -> list[Table]:
    held = bench.size(4_000, 1_000)
    limit = raise_descriptor_limit()
    if limit is not None:
        held = min(held, limit - FIRST - SPARE)
    if held < 1:
        raise SystemExit(f"memory: a descriptor limit of {limit} is too small to hold clients")
    bare: dict[str, list[float]] = {loop: [] for loop in bench.loops}
    ours: dict[tuple[str, str], list[float]] = {
        (path, loop): [] for path in servers.PATHS for loop in bench.loops
    }
    for _ in bench.rounds(5, 1, seconds=70):
        for loop in bench.loops:
            bare[loop].append(_bytes_per_client(bench, _bare(loop), held))
            for path in servers.PATHS:
                ours[path, loop].append(_bytes_per_client(bench, _greeter(path, loop), held))
    rounds = counted(len(bare["asyncio"]), "round")
    title = f"memory per client held in an async greeting, {held:,} at once, {rounds}"
    return [
        Table(
            "memory",
            title + "; bare is a handler of start_server",
            "bytes",
            tuple(_row(path, loop, found, bare[loop]) for (path, loop), found in ours.items()),
            "bare",
            0,
        ),
        Table(
            "memory_bytes",
            title + ", every round",
            "bytes",
            tuple(
                Row(servers.greeter_name(path, loop), figure(found), claim=Claim(LIMIT_BYTES))
                for (path, loop), found in ours.items()
                if path == servers.DIRECT
            ),
            digits=0,
        ),
    ]


def _row(path: str, loop: str, ours: list[float], bare: list[float]) -> Row:
    return Row(
        servers.greeter_name(path, loop),
        figure(ours),
        ratio=ratio(figure(ours), figure(bare)),
        claim=Claim(LIMIT) if path == servers.DIRECT else None,
        extras={"bare": statistics.median(bare)},
    )


def raise_descriptor_limit() -> int | None:
    """Raise the soft limit of descriptors to the hard one; returns it, or None if there is none."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return None if hard == resource.RLIM_INFINITY else hard


def _bare(loop: str) -> Contender:
    command = [sys.executable, "-m", "tests.benchmarks.programs.held"]
    return Contender(f"bare handler, {loop}", lambda port: [*command, str(port), loop], ours=True)


def _greeter(path: str, loop: str) -> Contender:
    # A client waits for longer than it is held here, and a stop does not wait for clients.
    options = ["--app", "tests.benchmarks.programs.held:never"]
    return servers.greeter(path, loop, options=[*options, "--greet-timeout", "600", "--drain-timeout", "0"])


def _bytes_per_client(bench: Bench, contender: Contender, held: int) -> float:
    """Start a fresh server and connect clients that wait; returns what each of the later ones added."""
    with contextlib.ExitStack() as stack, bench.serving([contender], probe=listens) as (server,):
        bench.say(f"holding {held:,} clients of {contender.name}")
        _hold(server, FIRST, stack)
        before = server.process.resident_bytes()
        _hold(server, held, stack)
        return (server.process.resident_bytes() - before) / held


def _hold(server: Server, count: int, stack: contextlib.ExitStack) -> None:
    """Connect ``count`` clients that wait, and return when the server has them all and is at rest."""
    wanted = server.process.descriptors() + count
    for _ in range(count):
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE))
        # Leave with a reset: thousands of ports would stay in TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end = time.monotonic() + PATIENCE
    while server.process.descriptors() < wanted:
        if time.monotonic() > end:
            raise SystemExit(f"memory: {server.name} did not take {count:,} clients within {PATIENCE:g} s")
        time.sleep(0.02)
    server.process.settled_cpu_seconds()

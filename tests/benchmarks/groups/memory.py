"""What a client costs in memory that is held in an async greeting, beside a bare handler.

The law: what is measured is what one more client adds. A first few hundred fill the pools that a process
keeps anyway; then so many more come at once, and the growth is divided by them. The kernel's own memory
for a socket is not in it.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import struct
import sys
import time
from typing import TYPE_CHECKING

from greeter.fdlimit import raise_fd_limit
from tests.benchmarks.bench import Contender, counted
from tests.benchmarks.figures import Claim, Row, Table, figure, ratio

if TYPE_CHECKING:
    from tests.benchmarks.bench import Bench, Server

LIMIT = 1.2
FIRST = 500
# Descriptors that this program and the server need for themselves, and the server holds in reserve.
SPARE = 100
PATIENCE = 20.0


def run(bench: Bench) -> list[Table]:
    held = bench.size(4_000, 2_000)
    limit = raise_fd_limit()
    if limit is not None:
        held = min(held, limit - FIRST - SPARE)
    if held < 1:
        raise SystemExit(f"memory: a descriptor limit of {limit} is too small to hold clients")
    bare: dict[str, list[float]] = {loop: [] for loop in bench.loops}
    ours: dict[str, list[float]] = {loop: [] for loop in bench.loops}
    for _ in bench.rounds(5, 1, seconds=45):
        for loop in bench.loops:
            bare[loop].append(_bytes_per_client(bench, _bare(loop), held))
            ours[loop].append(_bytes_per_client(bench, _greeter(loop), held))
    count = len(ours["asyncio"])
    title = f"memory per client held in an async greeting, {held:,} at once, {counted(count, 'round')}"
    rows = tuple(_row(loop, ours[loop], bare[loop]) for loop in bench.loops)
    return [Table("memory", title + "; bare is a handler of start_server", "bytes", rows, "bare", 0)]


def _row(loop: str, ours: list[float], bare: list[float]) -> Row:
    return Row(
        f"greeter, {loop}",
        figure(ours),
        ratio=ratio(figure(ours), figure(bare)),
        claim=Claim(LIMIT),
        extras={"bare": statistics.median(bare)},
    )


def _bare(loop: str) -> Contender:
    command = [sys.executable, "-m", "tests.benchmarks.programs.held"]
    return Contender(f"bare handler, {loop}", lambda port: [*command, str(port), loop], ours=True)


def _greeter(loop: str) -> Contender:
    # It has to wait for longer than we hold, and not at all when it is stopped.
    options = ["--app", "tests.benchmarks.programs.held:never", "--loop", loop, "--no-access-log"]
    options += ["--greet-timeout", "600", "--drain-timeout", "0"]

    def command(port: int) -> list[str]:
        return [sys.executable, "-m", "greeter", "serve", "--listen", f"127.0.0.1:{port}", *options]

    return Contender(f"greeter, {loop}", command, ours=True)


def _bytes_per_client(bench: Bench, contender: Contender, held: int) -> float:
    """Start a fresh server, let clients come and wait; returns what each of the later ones added."""
    with contextlib.ExitStack() as stack, bench.serving([contender], greets=False) as (server,):
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

"""``greeter demo``: the whole of greeter on a free port of this machine, in a few seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from greeter.client.oneshot import greet
from greeter.core.address import describe
from greeter.core.replies import Reply
from greeter.errors import MissingExtra
from greeter.loadtest import LoadPlan, load
from greeter.loadtest.report import render
from greeter.server import serve
from greeter.system.fdlimit import raise_fd_limit
from greeter.system.loops import choose_loop, run

if TYPE_CHECKING:
    from greeter.core.address import Address
    from greeter.server import Server
    from greeter.system.loops import LoopName

Say = Callable[[str], None]

SPARE_FDS = 50
LOAD_SECONDS = 3.0


def run_demo(say: Say, *, clients: int, loop: LoopName = "auto") -> int:
    """Show it; returns the exit code, which is 0 if every client was greeted."""
    limit = raise_fd_limit()
    if limit is not None and (most := (limit - SPARE_FDS) // 2) < clients:
        say(f"(The descriptor limit is {limit}, which is enough for {most} clients at once.)")
        clients = most
    return run(_demo(say, clients, choose_loop(loop)[0]), loop)


async def _demo(say: Say, clients: int, loop_name: str) -> int:
    seen: list[Address] = []

    def see(address: Address) -> None:
        if not seen:  # the first client is shown, the tens of thousands of the load test are not
            seen.append(address)

    async with serve(port=0, access_log=see, linger_timeout=5.0) as server:
        say(f"$ greeter serve --listen {server.addresses[0]}")
        say(f"Listening on {server.addresses[0]} ({loop_name}, {server.path})")
        reply = await greet(port=server.port)
        say(f"Got a connection from {describe(seen[0])}")
        say("")
        say(f"$ greeter greet {server.addresses[0]}")
        say(str(reply))
        say("")
        start = time.perf_counter()
        results = await asyncio.gather(
            *(greet(port=server.port, timeout=30, connect_timeout=30) for _ in range(clients)),
            return_exceptions=True,
        )
        elapsed = time.perf_counter() - start
        code = _summarise(say, results, elapsed, reply.data)
        say("")
        return await _load(say, server) or code


async def _load(say: Say, server: Server) -> int:
    """A real load test of the server, from a process of its own; how busy that was is no failure here."""
    say(f"$ greeter load {server.addresses[0]} --duration {LOAD_SECONDS:g}s")
    try:
        report = await load(LoadPlan(server.addresses[0], duration=LOAD_SECONDS), isolate=True)
    except MissingExtra as error:
        say(f"(Left out: {error})")
        return 0
    say(render.summary(report).removesuffix("\n"))
    return 0 if report.connections["failed"] == 0 else 1


def _summarise(say: Say, results: list[Reply | BaseException], elapsed: float, expected: bytes) -> int:
    greeted = [r for r in results if isinstance(r, Reply) and r.data == expected and not r.reset]
    times = sorted(r.total_time * 1e3 for r in greeted)
    say(f"{len(results):,} clients at once:")
    say(f"  greeted   {len(greeted):,} in {elapsed:.2f} s ({len(greeted) / elapsed:,.0f} a second)")
    if times:
        p50, p99 = times[len(times) // 2], times[min(len(times) - 1, len(times) * 99 // 100)]
        say(f"  greeting  p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {times[-1]:.1f} ms after the start of all")
    failed = len(results) - len(greeted)
    say(f"  failed    {failed}")
    for kind in sorted({type(r).__name__ for r in results if isinstance(r, BaseException)}):
        say(f"    {kind}: {sum(type(r).__name__ == kind for r in results)}")
    return 0 if failed == 0 else 1

"""``greeter demo``: run server, client, load tester and checks on this machine, for a few seconds."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from greeter.client.oneshot import greet
from greeter.conformance import check
from greeter.conformance.check_report import BROKEN, NEVER_GREETED
from greeter.conformance.text import MARKS
from greeter.core.address import format_peer
from greeter.core.replies import Reply
from greeter.errors import MissingExtra
from greeter.loadtest import LoadPlan, load
from greeter.loadtest.report.render import Style, summary
from greeter.server import serve
from greeter.system.fdlimit import raise_fd_limit
from greeter.system.loops import choose_loop, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from greeter.core.address import Address
    from greeter.server import Server
    from greeter.system.loops import LoopName

Echo = Callable[[str], None]

SPARE_FDS = 50
LOAD_SECONDS = 3.0
CHECKED = ("speaks-first", "half-close")


def run_demo(echo: Echo, *, clients: int, loop: LoopName = "auto") -> int:
    """Run the demonstration.

    Args:
        echo: Prints one line.
        clients: The number of clients to greet at once; fewer if the descriptor limit is too low.
        loop: The event loop.

    Returns:
        The exit code: 0 if every client was greeted, else 1.
    """
    limit = raise_fd_limit()
    if limit is not None and (most := (limit - SPARE_FDS) // 2) < clients:
        echo(f"(The descriptor limit is {limit}, which is enough for {most} clients at once.)")
        clients = most
    return run(_demo(echo, clients, choose_loop(loop)[0]), loop)


async def _demo(echo: Echo, clients: int, loop_name: str) -> int:
    seen: list[Address] = []

    def record_first(address: Address) -> None:
        if not seen:  # show the first client only, not those of the load test
            seen.append(address)

    async with serve(port=0, access_log=record_first, linger_timeout=5.0) as server:
        echo(f"$ greeter serve --listen {server.addresses[0]}")
        echo(f"Listening on {server.addresses[0]} ({loop_name}, {server.path})")
        reply = await greet(port=server.port)
        echo(f"Got a connection from {format_peer(seen[0])}")
        echo("")
        echo(f"$ greeter greet {server.addresses[0]}")
        echo(str(reply))
        echo("")
        start = time.perf_counter()
        results = await asyncio.gather(
            *(greet(port=server.port, timeout=30, connect_timeout=30) for _ in range(clients)),
            return_exceptions=True,
        )
        elapsed = time.perf_counter() - start
        code = _summarize(echo, results, elapsed, reply.data)
        echo("")
        code = await _load(echo, server) or code
        echo("")
        return await _check(echo, server) or code


async def _load(echo: Echo, server: Server) -> int:
    """Run a load test in a separate process. A saturated generator is not a failure here."""
    echo(f"$ greeter load {server.addresses[0]} --duration {LOAD_SECONDS:g}s")
    try:
        report = await load(LoadPlan(server.addresses[0], duration=LOAD_SECONDS), isolate=True)
    except MissingExtra as error:
        echo(f"(Left out: {error})")
        return 0
    echo(summary(report, Style.of()).removesuffix("\n"))
    return 0 if report.connections["failed"] == 0 else 1


async def _check(echo: Echo, server: Server) -> int:
    """Check the server, and beside it a loop that closes at once. To be unsure is not a failure here."""
    echo(f"$ greeter check {server.addresses[0]} --only {','.join(CHECKED)}")
    with _plain_loop() as plain:
        own, other = await asyncio.gather(
            check(server.addresses[0], only=CHECKED), check(plain, only=CHECKED)
        )
    echo(f"{'':<16}{'greeter':<32}a loop of accept, send, close")
    for mine, its in zip(own.results, other.results, strict=False):
        if mine.check.id in CHECKED:
            cells = [f"{MARKS[it.finding.verdict][0]} {it.finding.figure}" for it in (mine, its)]
            echo(f"{mine.check.id:<16}{cells[0]:<32}{cells[1]}")
    return 1 if own.exit_code in (NEVER_GREETED, BROKEN) else 0


@contextlib.contextmanager
def _plain_loop() -> Iterator[str]:
    """Serve in a thread, one client after the other, as a first program with sockets does."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)

        def serve_plainly() -> None:
            while not ended.is_set():
                with contextlib.suppress(OSError):  # also that no client came
                    client, _ = listener.accept()
                    with client:
                        client.sendall(b"Thank you for connecting")

        thread = threading.Thread(target=serve_plainly, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            thread.join()


def _summarize(echo: Echo, results: list[Reply | BaseException], elapsed: float, expected: bytes) -> int:
    greeted = [r for r in results if isinstance(r, Reply) and r.data == expected and not r.reset]
    times = sorted(r.total_time * 1e3 for r in greeted)
    echo(f"{len(results):,} clients at once:")
    echo(f"  greeted   {len(greeted):,} in {elapsed:.2f} s ({len(greeted) / elapsed:,.0f} a second)")
    if times:
        p50, p99 = times[len(times) // 2], times[min(len(times) - 1, len(times) * 99 // 100)]
        echo(f"  greeting  p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {times[-1]:.1f} ms after the start of all")
    failed = len(results) - len(greeted)
    echo(f"  failed    {failed}")
    for kind in sorted({type(r).__name__ for r in results if isinstance(r, BaseException)}):
        echo(f"    {kind}: {sum(type(r).__name__ == kind for r in results)}")
    return 0 if failed == 0 else 1

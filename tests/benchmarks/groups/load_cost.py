"""What a connection costs the load tester, beside the clients in C that it is measured with here.

Invariants:
- Both make the same closed loop, on the same core, against the same server on another one, turn about.
- The cost is the CPU time that the kernel counted for the whole process, of a long run less that of a short
  one. So what a start and a report need is not in it, and no program reports its own cost.
- The rate is that of one process on one core.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from tests.benchmarks import servers
from tests.benchmarks.bench import counted, rotated
from tests.benchmarks.figures import Claim, Row, Table, compared, figure
from tests.benchmarks.process import run_to_end

if TYPE_CHECKING:
    from tests.benchmarks.bench import Bench

LIMIT = 1.6
LEAST_RATE = 10_000
AT_ONCE = 200
SHORT = 1 / 50  # of a long run


def run(bench: Bench) -> list[Table]:
    count = bench.size(30_000, 5_000)
    served_by = servers.nginx(bench) or [servers.greeter(servers.DIRECT, "asyncio")]
    compiled = not isinstance(bench.programs, str)
    base = "C epoll client" if compiled else "Python epoll client"
    ours = f"greeter load, {'uvloop' if 'uvloop' in bench.loops else 'asyncio'}"
    with bench.serving(served_by, measured=False) as (server,):
        file = bench.folder / "load.json"

        def bare(total: int) -> list[str]:
            return bench.load.command(server.port, at_once=AT_ONCE, total=total)

        def greeter(total: int) -> list[str]:
            options = ["-c", str(AT_ONCE), "-n", str(total), "--quiet", "--json", str(file)]
            return [sys.executable, "-m", "greeter", "load", f"127.0.0.1:{server.port}", *options]

        commands = {base: bare, ours: greeter}
        costs: dict[str, list[float]] = {name: [] for name in commands}
        rates: dict[str, list[float]] = {name: [] for name in commands}
        for number in bench.rounds(9, 1, seconds=40):
            for name in rotated(list(commands), number):
                short = int(count * SHORT)
                start = run_to_end(commands[name](short), bench.measured).cpu_seconds
                done = run_to_end(commands[name](count), bench.measured)
                costs[name].append((done.cpu_seconds - start) / (count - short) * 1e6)
                rates[name].append(_rate(file.read_text() if name == ours else done.output, count))
    rounds = f"{counted(len(costs[base]), 'round')} of {count:,} to {server.name}, {AT_ONCE} at a time"
    return [
        Table(
            "load_cost",
            f"client CPU per connection, one worker on one core, {rounds}",
            "µs",
            compared(costs, base, claims={ours: LIMIT} if compiled else None),
            base,
        ),
        Table(
            "load_rate",
            f"connections per second from one core, {rounds}",
            "connections/s",
            tuple(
                Row(name, figure(found), claim=Claim(LEAST_RATE, at_least=True) if name == ours else None)
                for name, found in rates.items()
            ),
            digits=0,
        ),
    ]


def _rate(text: str, count: int) -> float:
    """Greeted clients per second, from either client's JSON. A run that lost any is none to judge by."""
    said = json.loads(text)
    greeted, seconds = (
        (said["connections"]["greeted"], said["duration_s"])
        if "connections" in said
        else (said["greeted"], said["seconds"])
    )
    if greeted != count:
        raise SystemExit(f"load_cost: {greeted:,} of {count:,} clients were greeted")
    return float(greeted / seconds)

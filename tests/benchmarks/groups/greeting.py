"""What a greeting costs the server, and how long a client of a crowd waits for it.

The law: both come from the same rounds, in which a crowd of clients without a pause keeps the server busy.
The cost is the processor time that the server used in a round, over the clients that it greeted; the wait
is the 99th percentile of a round.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from tests.benchmarks import servers
from tests.benchmarks.bench import counted, rotated
from tests.benchmarks.figures import Table, compared

if TYPE_CHECKING:
    from tests.benchmarks.bench import Bench
    from tests.benchmarks.load import Outcome

AT_ONCE = 200


def run(bench: Bench) -> list[Table]:
    greetings = bench.size(10_000, 2_000)
    contenders = [
        *servers.nginx(bench),
        *servers.nginx(bench, log=True),
        *servers.greeters(bench),
        *servers.greeters(bench, log=True),
        *servers.others(bench),
    ]
    with bench.serving(contenders) as up:
        costs: dict[str, list[float]] = {server.name: [] for server in up}
        outcomes: dict[str, list[Outcome]] = {server.name: [] for server in up}
        for server in up:
            bench.load.run(server.port, at_once=AT_ONCE, total=greetings // 4)
            server.process.settled_cpu_seconds()
        for number in bench.rounds(21, 3, seconds=160):
            for server in rotated(up, number):
                before = server.process.cpu_seconds()
                outcome = bench.load.run(server.port, at_once=AT_ONCE, total=greetings)
                after = server.process.settled_cpu_seconds()
                costs[server.name].append((after - before) / max(1, outcome.greeted) * 1e6)
                outcomes[server.name].append(outcome)
        base = servers.base_of(up)
    rounds = f"{counted(len(costs[base]), 'round')} of {greetings:,} greetings, {AT_ONCE} clients at a time"
    judged = base == servers.NGINX
    extras = {
        name: {
            "greetings/s": statistics.median(outcome.rate for outcome in found),
            "lost": sum(outcome.lost for outcome in found),
        }
        for name, found in outcomes.items()
    }
    waits = {name: [outcome.p99_us / 1e3 for outcome in found] for name, found in outcomes.items()}
    return [
        Table(
            "greeting",
            f"server CPU per greeting, {rounds}",
            "µs",
            compared(costs, base, claims=_cost_claims(bench) if judged else None, extras=extras),
            base,
        ),
        Table(
            "wait",
            f"time to the greeting, 99th percentile, {rounds}",
            "ms",
            compared(waits, base, claims=_wait_claims(bench) if judged else None),
            base,
            digits=2,
        ),
    ]


def _cost_claims(bench: Bench) -> dict[str, float]:
    claims = {servers.greeter_name("stream", "uvloop"): 2.0}
    for loop in bench.loops:
        claims[servers.greeter_name("instant", loop)] = 1.25
        claims[servers.greeter_name("instant", loop, log=True)] = 1.8
    return claims


def _wait_claims(bench: Bench) -> dict[str, float]:
    return {servers.greeter_name("instant", loop): 1.2 for loop in bench.loops}

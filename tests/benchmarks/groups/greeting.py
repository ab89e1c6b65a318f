"""What a fixed greeting costs the server, and how long a client of a crowd waits for it.

Invariants:
- All come from the same rounds, in which a crowd of clients without a pause keeps the server busy. The wait
  is the 99th percentile of a round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks import servers
from tests.benchmarks.costs import Effort, compare
from tests.benchmarks.figures import Table, compared

if TYPE_CHECKING:
    from tests.benchmarks.bench import Bench

LIMIT = 1.25
FLOOR_LIMIT = 1.3
LOG_LIMIT = 1.8
WAIT_LIMIT = 1.2
LOG = "access log"
EFFORT = Effort(greetings=(10_000, 1_000), rounds=(21, 1), seconds=160)


def run(bench: Bench) -> list[Table]:
    contenders = [
        *servers.nginx(bench),
        *servers.nginx(bench, log=True),
        *servers.greeters(bench),
        *servers.greeters(bench, log=True, note=LOG),
        *servers.others(bench),
    ]
    with bench.serving(contenders) as up:
        found = compare(bench, up, bench.load, EFFORT)
    waits = {name: [outcome.p99_us / 1e3 for outcome in of] for name, of in found.outcomes.items()}
    limits = servers.direct_limits(bench, LIMIT) | servers.direct_limits(bench, LOG_LIMIT, LOG)
    return [
        found.table("greeting", "server CPU per greeting", limits),
        *found.beside(
            servers.FLOOR,
            "greeting_floor",
            "server CPU per greeting",
            servers.direct_limits(bench, FLOOR_LIMIT),
        ),
        Table(
            "wait",
            f"time to the greeting, 99th percentile, {found.effort}",
            "ms",
            compared(waits, found.base, claims=found.judged(servers.direct_limits(bench, WAIT_LIMIT))),
            found.base,
            digits=2,
        ),
    ]

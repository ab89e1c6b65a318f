"""What a greeting costs with 1, 2 and 4 workers, and how many a second they make.

Invariants:
- The workers may run on every processor, and the load runs on one of them. So where there are few processors,
  more workers cannot make more greetings a second, and what is left to see is what they cost.
- Several workers cost more: a new connection wakes each of them that is idle, and one of them takes it. The
  fewer processors they share, the smaller are the batches that each of them accepts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks import servers
from tests.benchmarks.bench import counted
from tests.benchmarks.costs import Effort, compare

if TYPE_CHECKING:
    from tests.benchmarks.bench import Bench
    from tests.benchmarks.figures import Table

WORKERS = (1, 2, 4)
LIMITS = {2: 1.6, 4: 2.5}
EFFORT = Effort(greetings=(10_000, 1_000), rounds=(9, 1), seconds=45)


def run(bench: Bench) -> list[Table]:
    tables: list[Table] = []
    for loop in bench.loops:
        contenders = [
            servers.greeter(
                servers.DIRECT, loop, options=["--workers", str(count)], note=counted(count, "worker")
            )
            for count in WORKERS
        ]
        with bench.serving(contenders, anywhere=True) as up:
            found = compare(bench, up, bench.load, EFFORT)
        names = dict(zip(WORKERS, (contender.name for contender in contenders), strict=True))
        claims = {names[count]: limit for count, limit in LIMITS.items()}
        tables += found.beside(names[1], f"workers_{loop}", "server CPU per greeting", claims)
    return tables

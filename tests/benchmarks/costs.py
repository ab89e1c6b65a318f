"""Server CPU time per greeting: the measurement that several groups share.

Invariants:
- A cost is the CPU time that a server used in a round, divided by the greetings of that round.
- All servers of a comparison are up from its first round to its last, and every round visits each of them
  once, beginning with another one. So a ratio compares what ran within the same seconds.
- A comparison judges claims about nginx only where nginx is its base.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.benchmarks import servers
from tests.benchmarks.bench import counted, rotated
from tests.benchmarks.figures import Table, compared
from tests.benchmarks.process import settle

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.benchmarks.bench import Bench, Server
    from tests.benchmarks.load import Load, Outcome

AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Effort:
    """How much to measure: greetings a round, and rounds, of a full run and of a quick one.

    No round begins after ``seconds`` of a full run, or a share of them of a quick one. So many clients are
    there ``at_once``.
    """

    greetings: tuple[int, int]
    rounds: tuple[int, int]
    seconds: float
    at_once: int = AT_ONCE


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was measured, by the servers' names.

    ``costs`` are microseconds of CPU time per greeting, one for each round; so are ``outcomes``.
    """

    base: str
    greetings: int
    costs: Mapping[str, Sequence[float]]
    outcomes: Mapping[str, Sequence[Outcome]]
    at_once: int = AT_ONCE

    @property
    def effort(self) -> str:
        """The rounds, for the title of a table."""
        rounds = counted(len(self.costs[self.base]), "round")
        return f"{rounds} of {self.greetings:,} greetings, {self.at_once} clients at a time"

    def judged(self, claims: Mapping[str, float]) -> Mapping[str, float]:
        """``claims``, where the base is nginx, which they are about; otherwise none."""
        return claims if self.base == servers.NGINX else {}

    def table(self, name: str, title: str, claims: Mapping[str, float]) -> Table:
        """The costs as a table. ``claims`` are limits of the ratio to nginx, by the row's name."""
        return self._table(name, title, self.base, self.costs, self.judged(claims))

    def beside(self, base: str, name: str, title: str, claims: Mapping[str, float]) -> list[Table]:
        """The costs of the rows in ``claims`` alone, beside another row; no table if that one is not up."""
        if base not in self.costs:
            return []
        costs = {row: self.costs[row] for row in (base, *claims)}
        return [self._table(name, f"{title}, beside {base}", base, costs, claims)]

    def _table(
        self,
        name: str,
        title: str,
        base: str,
        costs: Mapping[str, Sequence[float]],
        claims: Mapping[str, float],
    ) -> Table:
        extras = {
            server: {
                "greetings/s": statistics.median(outcome.rate for outcome in found),
                "p50 µs": statistics.median(outcome.p50_us for outcome in found),
                "p99 µs": statistics.median(outcome.p99_us for outcome in found),
                "lost": sum(outcome.lost for outcome in found),
            }
            for server, found in self.outcomes.items()
        }
        rows = compared(costs, base, claims=claims, extras=extras)
        return Table(name, f"{title}, {self.effort}", "µs", rows, base)


def compare(bench: Bench, up: Sequence[Server], load: Load, effort: Effort) -> Comparison:
    """Measure the servers that are ``up``, with ``load``."""
    greetings = bench.size(*effort.greetings)
    costs: dict[str, list[float]] = {server.name: [] for server in up}
    outcomes: dict[str, list[Outcome]] = {server.name: [] for server in up}
    # Warm up: the first greetings of a process load and compile what the others reuse.
    for server in up:
        load.run(server.port, at_once=effort.at_once, total=greetings // 4)
    settle([server.process for server in up])
    for number in bench.rounds(*effort.rounds, seconds=effort.seconds):
        for server in rotated(up, number):
            before = server.process.cpu_seconds()
            outcome = load.run(server.port, at_once=effort.at_once, total=greetings)
            after = server.process.settled_cpu_seconds()
            costs[server.name].append((after - before) / max(1, outcome.greeted) * 1e6)
            outcomes[server.name].append(outcome)
    return Comparison(servers.base_of(up), greetings, costs, outcomes, effort.at_once)

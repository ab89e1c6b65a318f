"""What a greeting costs that a callable makes: async at once, async after 5 ms, and sync in a thread.

Invariants:
- Beside greeter runs the documented pattern, a coroutine of ``asyncio.start_server`` that awaits the same
  callable. nginx runs no code: its ``return`` is what all are compared with.
- 200 clients at a time keep each server busy while callables wait. Only the rows of threads are bounded by
  something else: by how many threads a server has, see their greetings/s.
- A callable in a thread is compared with threads that do nothing but serve, too: that a thread sleeps, and
  takes the interpreter again, is most of what it costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.benchmarks import servers
from tests.benchmarks.costs import Effort, compare

if TYPE_CHECKING:
    from tests.benchmarks.bench import Bench
    from tests.benchmarks.figures import Table


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of callable: its table, its name in programs/greetings.py, and what greeter direct may cost."""

    table: str
    title: str
    app: str
    limit: float | None
    effort: Effort
    threads_limit: float | None = None  # × threads that do nothing but serve


KINDS = (
    Kind(
        "async_at_once",
        "an async greeting that returns at once",
        "at_once",
        1.6,
        Effort(greetings=(5_000, 500), rounds=(11, 1), seconds=45),
    ),
    Kind(
        "async_5_ms",
        "an async greeting that sleeps for 5 ms",
        "after_5_ms",
        2.0,
        Effort(greetings=(5_000, 500), rounds=(11, 1), seconds=45),
    ),
    Kind(
        "thread_5_ms",
        "a callable that blocks a thread for 5 ms",
        "slow_call",
        None,
        Effort(greetings=(1_000, 200), rounds=(11, 1), seconds=45),
        threads_limit=1.7,
    ),
)


def run(bench: Bench) -> list[Table]:
    return [table for kind in KINDS for table in _tables(bench, kind)]


def _tables(bench: Bench, kind: Kind) -> list[Table]:
    contenders = [
        *servers.nginx(bench),
        *servers.greeters(bench, options=servers.app_options(kind.app)),
        *servers.patterns(bench, "--app", kind.app),
        *(servers.blocking_threads() if kind.threads_limit is not None else ()),
    ]
    with bench.serving(contenders) as up:
        found = compare(bench, up, bench.load, kind.effort)
    limits = {} if kind.limit is None else servers.direct_limits(bench, kind.limit)
    title = f"server CPU per greeting: {kind.title}"
    tables = [found.table(kind.table, title, limits)]
    if kind.threads_limit is not None:
        beside = servers.direct_limits(bench, kind.threads_limit)
        tables += found.beside(servers.THREADS, f"{kind.table}_threads", title, beside)
    return tables

"""Whether the load tester needs more memory for a longer run: the same load for 10 s and for 60 s.

Invariants:
- Both run at the same time, each a process that makes its load itself. What is compared is the most memory
  that each had resident from its first line to its report.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tests.benchmarks import servers
from tests.benchmarks.figures import Table, compared
from tests.benchmarks.process import run_to_end

if TYPE_CHECKING:
    from tests.benchmarks.bench import Bench

LIMIT = 1.05
SECONDS = (10, 60)
RATE = 2_000


def run(bench: Bench) -> list[Table]:
    served_by = servers.nginx(bench) or [servers.greeter(servers.DIRECT, "asyncio")]
    with bench.serving(served_by, measured=False) as (server,):
        bench.say(f"loading for {max(SECONDS)} s")

        def peak(seconds: int) -> float:
            file = bench.folder / f"load-{seconds}.json"
            options = ["-r", str(RATE), "-z", f"{seconds}s", "--quiet", "--json", str(file)]
            program = ["-m", "tests.benchmarks.programs.peak", "load", f"127.0.0.1:{server.port}"]
            ended = run_to_end([sys.executable, *program, *options], bench.measured)
            return int(ended.output.splitlines()[-1]) / 1e6

        with ThreadPoolExecutor(len(SECONDS)) as pool:
            peaks = dict(zip(SECONDS, pool.map(peak, SECONDS), strict=True))
    short, long = (f"greeter load for {seconds} s" for seconds in SECONDS)
    return [
        Table(
            "load_memory",
            f"the most memory that was resident, {RATE:,} connections/s to {server.name}",
            "MB",
            compared({short: [peaks[SECONDS[0]]], long: [peaks[SECONDS[1]]]}, short, claims={long: LIMIT}),
            short,
        )
    ]

"""What a greeting of 1 MB costs the server.

Invariants:
- Whether a socket takes it at once depends on the kernel (tcp(7), tcp_wmem). On loopback most do.
- The direct path is compared with asyncio's documented pattern on the same loop.
- nginx makes such a text of variables for each client, which it was not built for: its row is no measure of
  what nginx costs that sends a file.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tests.benchmarks import servers
from tests.benchmarks.bench import greets
from tests.benchmarks.costs import Effort, compare
from tests.benchmarks.load import GREETING

if TYPE_CHECKING:
    from tests.benchmarks.bench import Bench
    from tests.benchmarks.figures import Table

LIMIT = 1.1
TIMES = 42_000  # of 24 bytes; a multiple of 2,000, which nginx needs
EFFORT = Effort(greetings=(200, 20), rounds=(11, 1), seconds=45, at_once=20)


def run(bench: Bench) -> list[Table]:
    file = bench.folder / "large-greeting"
    file.write_bytes(GREETING * TIMES)
    contenders = [
        *servers.nginx(bench, times=TIMES),
        *servers.greeters(bench, options=["--greeting-file", str(file)]),
        *servers.patterns(bench, "--times", str(TIMES)),
    ]
    with bench.serving(contenders, probe=partial(greets, times=TIMES)) as up:
        found = compare(bench, up, bench.load_that_sends(times=TIMES), EFFORT)
    title = f"server CPU per greeting of {len(GREETING) * TIMES:,} bytes"
    tables = [found.table("large", title, {})]
    for loop in bench.loops:
        claims = {servers.greeter_name(servers.DIRECT, loop): LIMIT}
        tables += found.beside(f"{servers.PATTERN}, {loop}", f"large_{loop}", title, claims)
    return tables

"""What an idle server does: nothing.

Invariants:
- Every wake-up of a thread ends in a context switch, and the kernel counts them, so a server that sleeps adds
  none.
- All servers are idle at the same time, each after it greeted a client or two.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.benchmarks import servers
from tests.benchmarks.figures import Claim, Row, Table, figure
from tests.benchmarks.process import settle

if TYPE_CHECKING:
    from tests.benchmarks.bench import Bench

# What a client leaves behind: it is closed, its log line is written, the allocator has returned memory.
SETTLING_SECONDS = 3.0


def run(bench: Bench) -> list[Table]:
    seconds = bench.size(10, 3)
    ours = servers.greeters(bench, log=True, note="access log")
    promised = {contender.name for contender in ours}
    with bench.serving([*servers.nginx(bench), *ours, *servers.others(bench)]) as up:
        settle([server.process for server in up])
        bench.say("settling")
        time.sleep(SETTLING_SECONDS)
        bench.say(f"idle for {seconds} s")
        before = {server.name: server.process.switches() for server in up}
        time.sleep(seconds)
        switches = {server.name: server.process.switches() - before[server.name] for server in up}
    rows = tuple(
        Row(name, figure([count]), claim=Claim(0) if name in promised else None)
        for name, count in switches.items()
    )
    return [Table("idle", f"wake-ups of an idle server in {seconds} s", "wake-ups", rows, digits=0)]

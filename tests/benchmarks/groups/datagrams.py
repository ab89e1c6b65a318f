"""What a greeting in a datagram costs the server, beside nginx's ``listen … udp; return …``.

Invariants:
- Each client has a socket, and so a port, of its own, as clients that come from a network have.
- Clients are on the loopback and send little. So neither server has a reason to reject one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks import servers
from tests.benchmarks.bench import answers
from tests.benchmarks.costs import Effort, compare

if TYPE_CHECKING:
    from tests.benchmarks.bench import Bench
    from tests.benchmarks.figures import Table

LIMIT = 1.0
EFFORT = Effort(greetings=(20_000, 2_000), rounds=(21, 1), seconds=60)


def run(bench: Bench) -> list[Table]:
    load = bench.datagram_load
    if isinstance(load, str):
        bench.left_out["datagrams"] = load
        return []
    contenders = [*servers.nginx(bench, datagrams=True), *servers.datagram_greeters(bench)]
    with bench.serving(contenders, probe=answers) as up:
        found = compare(bench, up, load, EFFORT)
    limits = {contender.name: LIMIT for contender in contenders if contender.ours}
    return [found.table("datagrams", "server CPU per greeting in a datagram", limits)]

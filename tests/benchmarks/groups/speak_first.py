"""Who loses clients that speak before they read.

The law: such a client does nothing wrong. A server that closes while what the client said is unread makes
the kernel send a reset (RFC 1122, 4.2.2.13; RFC 2525, 2.17), which may take the greeting with it; so
every client here that does not get all bytes and an orderly end is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks import servers
from tests.benchmarks.bench import rotated
from tests.benchmarks.figures import Claim, Row, Table, figure

if TYPE_CHECKING:
    from tests.benchmarks.bench import Bench, Server
    from tests.benchmarks.load import Outcome

AT_ONCE = 50
SIZES = (18, 5_000)


def run(bench: Bench) -> list[Table]:
    clients = bench.size(2_000, 500)
    ours = servers.greeters(bench)
    promised = {contender.name for contender in ours}
    found: dict[int, dict[str, list[Outcome]]] = {}
    with bench.serving([*servers.nginx(bench), *ours, *servers.others(bench)]) as up:
        for size in SIZES:
            found[size] = _measure(bench, up, clients, size)
    return [
        Table(
            f"speak_first_{size}",
            f"clients lost that send {size:,} bytes before they read, of {clients:,}, {AT_ONCE} at a time",
            "lost",
            tuple(_row(name, outcomes, name in promised) for name, outcomes in by_name.items()),
            digits=0,
        )
        for size, by_name in found.items()
    ]


def _measure(bench: Bench, up: list[Server], clients: int, size: int) -> dict[str, list[Outcome]]:
    outcomes: dict[str, list[Outcome]] = {server.name: [] for server in up}
    for number in bench.rounds(5, 2, seconds=12):
        for server in rotated(up, number):
            outcome = bench.load.run(server.port, at_once=AT_ONCE, total=clients, say=size)
            outcomes[server.name].append(outcome)
    return outcomes


def _row(name: str, outcomes: list[Outcome], promised: bool) -> Row:
    return Row(
        name,
        figure([outcome.lost for outcome in outcomes]),
        claim=Claim(0) if promised else None,
        extras={
            "reset": sum(outcome.reset for outcome in outcomes),
            "empty": sum(outcome.empty for outcome in outcomes),
            "short": sum(outcome.short for outcome in outcomes),
            "failed": sum(outcome.failed for outcome in outcomes),
        },
    )

"""Which servers lose clients that send before they read.

Invariants:
- Such a client does nothing wrong. A server that closes while unread input is in its socket makes the kernel
  send a reset (RFC 1122, 4.2.2.13; RFC 2525, 2.17), which may destroy the greeting. Every client here that
  does not get all bytes and an orderly end of stream is lost.
- greeter promises none lost, with a fixed greeting and with an async one that waits, on both paths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks import servers
from tests.benchmarks.bench import rotated
from tests.benchmarks.figures import Claim, Row, Table, figure

if TYPE_CHECKING:
    from tests.benchmarks.bench import Bench, Server
    from tests.benchmarks.load import Load, Outcome

AT_ONCE = 50
SIZES = (18, 5_000)


def run(bench: Bench) -> list[Table]:
    clients = bench.size(2_000, 500)
    ours = [
        *servers.greeters(bench),
        *servers.greeters(bench, options=servers.app_options("after_5_ms"), note="async greeting"),
    ]
    promised = {contender.name for contender in ours}
    found: dict[int, dict[str, list[Outcome]]] = {}
    with bench.serving([*servers.nginx(bench), *ours, *servers.others(bench)]) as up:
        for size in SIZES:
            found[size] = _measure(bench, up, bench.load_that_sends(b"x" * size), clients)
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


def _measure(bench: Bench, up: list[Server], load: Load, clients: int) -> dict[str, list[Outcome]]:
    outcomes: dict[str, list[Outcome]] = {server.name: [] for server in up}
    for number in bench.rounds(5, 1, seconds=20):
        for server in rotated(up, number):
            outcome = load.run(server.port, at_once=AT_ONCE, total=clients)
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
            "wrong": sum(outcome.wrong for outcome in outcomes),
            "failed": sum(outcome.failed for outcome in outcomes),
        },
    )

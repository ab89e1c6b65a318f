"""What being greeted costs a client: ``await greet()`` beside asyncio's own parts.

Invariants:
- Both run in one process, turn about, against a server on another processor.
"""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING

from tests.benchmarks import servers
from tests.benchmarks.figures import Claim, Row, Table, figure, ratio

if TYPE_CHECKING:
    from tests.benchmarks.bench import Bench

LIMIT = 1.0
AT_ONCE = (1, 50)
PAIRS = 5  # in one process

Pairs = list[tuple[float, float]]


def run(bench: Bench) -> list[Table]:
    greetings = bench.size(500, 200)
    pairs: dict[tuple[str, int], Pairs] = {(loop, many): [] for loop in bench.loops for many in AT_ONCE}
    with bench.serving([servers.greeter(servers.DIRECT, "asyncio")], measured=False) as (server,):
        for _ in bench.rounds(4, 1, seconds=40):
            for (loop, many), found in pairs.items():
                found += _measure(bench, server.port, loop, many, greetings)
    count = len(pairs["asyncio", 1])
    title = f"client CPU per await, {count} pairs of {greetings}; bare: open_connection, read, a deadline"
    rows = tuple(_row(loop, many, found) for (loop, many), found in pairs.items())
    return [Table("client", title, "µs", rows, "bare")]


def _measure(bench: Bench, port: int, loop: str, many: int, greetings: int) -> Pairs:
    program = "tests.benchmarks.programs.client_cost"
    arguments = (str(port), loop, str(many), str(greetings), str(PAIRS))
    return [(bare, ours) for bare, ours in json.loads(bench.output("-m", program, *arguments))]


def _row(loop: str, many: int, pairs: Pairs) -> Row:
    bare, ours = figure([bare for bare, _ in pairs]), figure([ours for _, ours in pairs])
    return Row(
        f"greet(), {loop}, {many} at a time",
        ours,
        ratio=ratio(ours, bare),
        claim=Claim(LIMIT),
        extras={"bare": statistics.median(bare.samples)},
    )

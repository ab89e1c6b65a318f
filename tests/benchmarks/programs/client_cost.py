"""The processor time of two clients, turn about in one process: asyncio's own parts, and ``greet()``.

Invariants:
- The two take turns in small batches, so a change of the machine's speed affects both.
- The bare client is the least that does the job: it has a deadline, and closes what it opened.

usage: client_cost.py PORT LOOP AT_ONCE GREETINGS ROUNDS
Prints one JSON list of [bare, greet] for each round, in microseconds per greeting.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING

from greeter import greet
from tests.benchmarks.programs.loops import run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

EXPECTED = b"Thank you for connecting"


async def bare(port: int) -> bytes:
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        data = await reader.read()
        writer.close()
    return data


async def ours(port: int) -> bytes:
    return (await greet("127.0.0.1", port)).data


async def batch(client: Callable[[int], Awaitable[bytes]], port: int, at_once: int, greetings: int) -> float:
    """Be greeted so many times; returns the processor time of one, in microseconds."""

    async def one_after_the_other() -> None:
        for _ in range(greetings // at_once):
            data = await client(port)
            if data != EXPECTED:
                raise SystemExit(f"the server said {data!r}")

    before = time.process_time_ns()
    if at_once == 1:
        await one_after_the_other()
    else:
        await asyncio.gather(*(one_after_the_other() for _ in range(at_once)))
    return (time.process_time_ns() - before) / 1e3 / (greetings // at_once * at_once)


async def main(port: int, at_once: int, greetings: int, rounds: int) -> list[tuple[float, float]]:
    found = []
    for number in range(rounds + 1):
        if number % 2:
            a = await batch(bare, port, at_once, greetings)
            b = await batch(ours, port, at_once, greetings)
        else:
            b = await batch(ours, port, at_once, greetings)
            a = await batch(bare, port, at_once, greetings)
        found.append((a, b))
    return found[1:]  # the first one warms up


if __name__ == "__main__":
    port, at_once, greetings, rounds = map(int, (sys.argv[1], *sys.argv[3:]))
    print(json.dumps(run(main(port, at_once, greetings, rounds), sys.argv[2])))

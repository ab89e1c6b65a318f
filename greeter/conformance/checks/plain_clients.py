"""Checks of the greeting itself, with clients that only listen."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING

from greeter.conformance.findings import Ending, Finding, Severity, Tally, Verdict, judged, skipped
from greeter.conformance.registry import register
from greeter.conformance.tested_service import BEGINNING, listen_only

if TYPE_CHECKING:
    from greeter.conformance.tested_service import TestedService


@register(
    "greets",
    "greets 10 clients, one after the other, each within the deadline",
    Severity.MUST,
    why="It is what every other check builds on.",
    sources=("its own word",),
    cause="The service does not answer, answers each client differently, or not within the deadline.",
    cure="Name what a client says first with --send or --profile, and what ends its greeting with --until.",
)
async def greets(service: TestedService) -> Finding:
    """Learns the beginning and the length of the greeting."""
    tally, said, times = Tally(), [], []
    for _ in range(10):
        experience = await service.control()
        tally.add(experience)
        if experience.ending in (Ending.GREETED, Ending.RESET):
            said.append(experience.data)
            times.append(experience.story[-1][0])
    if not said:
        return judged(tally)
    service.greeting = said[0]
    service.dial = dataclasses.replace(
        service.dial,
        beginning=_common_beginning(said),
        shortest=min(map(len, said)),
    )
    # A reset is judged by the check of the end.
    finding = judged(tally, Ending.GREETED, Ending.RESET)
    sizes = sorted({len(data) for data in said})
    size = f"{sizes[0]} B" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} B"
    if finding.verdict is Verdict.PASS:
        finding = dataclasses.replace(
            finding, figure=f"{len(said)} of 10, {size}, slowest {max(times) * 1e3:.0f} ms"
        )
    return dataclasses.replace(finding, data={"size_bytes": sizes, "slowest_us": round(max(times) * 1e6)})


def _common_beginning(said: list[bytes]) -> bytes:
    columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*said, strict=False))
    return bytes(column[0] for column in columns)[:BEGINNING]


@register(
    "end",
    "ends in order for a client that only listens",
    Severity.MUST,
    why="A reset instead of the end of stream makes many clients discard what they have received.",
    sources=("RFC 9293 3.6",),
    cause="The service resets the connection, or closes it with SO_LINGER 0.",
    cure="Close the connection without SO_LINGER 0, after all data was sent.",
    needs=("eof",),
)
async def end(service: TestedService) -> Finding:
    """The client sees FIN, and no reset shortly after it."""
    return judged(await service.clients(4, listen_only), late=service.late)


@register(
    "families",
    "greets at every address of its name",
    Severity.SHOULD,
    why="A client that takes an address of the name which does not answer waits, or fails.",
    sources=("RFC 6724", "RFC 8305"),
    cause="The service listens on one address family only, and its name has addresses of both.",
    cure="Listen on every address that the name resolves to, or remove the address from the name.",
    needs=("tcp",),
)
async def families(service: TestedService) -> Finding:
    """One client for each address."""
    if len(service.dials) == 1:
        return skipped("the target has one address")
    tally = Tally()
    for dial in service.dials:
        known = dataclasses.replace(dial, beginning=service.dial.beginning, shortest=service.dial.shortest)
        tally.add(await service.client(listen_only, dial=known))
    finding = judged(tally, Ending.GREETED, Ending.RESET)
    if service.local and finding.verdict is Verdict.FAIL:  # many machines have a ::1 that nothing listens on
        return dataclasses.replace(finding, verdict=Verdict.INFO)
    return finding

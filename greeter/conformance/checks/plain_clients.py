"""Checks of the greeting itself, with clients that only listen."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
from time import perf_counter
from typing import TYPE_CHECKING

from greeter.conformance.findings import Ending, Finding, Severity, Tally, Verdict, judged, skipped
from greeter.conformance.registry import register
from greeter.conformance.tested_service import BEGINNING, listen_only
from greeter.core.escapes import escape

if TYPE_CHECKING:
    from greeter.conformance.findings import Experience
    from greeter.conformance.tested_service import TestedService


# After so many seconds, enough clients have asked a service that answers slowly.
ENOUGH_SECONDS = 5.0


@register(
    "greets",
    "greets 10 clients, one after the other, each within the deadline",
    Severity.MUST,
    why="It is what every other check builds on.",
    sources=("its own word",),
    cause="The service does not answer, answers each client differently, or not within the deadline.",
    cure="Name what a client says first with --send or --profile, and what ends its greeting with --until.",
    seconds=60.0,
)
async def greets(service: TestedService) -> Finding:
    """Learns the beginning and the length of the greeting."""
    tally, begin = Tally(), perf_counter()
    said: list[bytes] = []
    times: list[float] = []
    for number in range(10):
        if number and not said:
            break  # it is not there, or says something else
        experience = await service.control()
        tally.add(experience)
        if experience.ending in (Ending.GREETED, Ending.RESET):
            said.append(experience.data)
            times.append(experience.story[-1][0])
        if perf_counter() - begin > ENOUGH_SECONDS:
            break
    if not said:
        return dataclasses.replace(judged(tally), figure=_why_not(service, experience))
    service.greeting = said[0]
    service.dial = dataclasses.replace(
        service.dial,
        beginning=_common_beginning(said),
        shortest=min(map(len, said)),
    )
    # A reset is judged by the check of the end.
    finding = judged(tally, Ending.GREETED, Ending.RESET)
    return how_slow(finding, tally.total, said, times)


def how_slow(finding: Finding, total: int, said: list[bytes], times: list[float]) -> Finding:
    """Returns the finding of the first check, with the sizes of the greetings and the longest time."""
    sizes = sorted({len(data) for data in said})
    size = f"{sizes[0]} B" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} B"
    if finding.verdict is Verdict.PASS:
        figure = f"{len(said)} of {total}, {size}, slowest {max(times) * 1e3:.0f} ms"
        finding = dataclasses.replace(finding, figure=figure)
    return dataclasses.replace(finding, data={"size_bytes": sizes, "slowest_us": round(max(times) * 1e6)})


def _why_not(service: TestedService, experience: Experience) -> str:
    """Returns why a client was not greeted, and what may help, in one line."""
    plan, last = service.plan, experience.story[-1][1] if experience.story else ""
    heard = escape(experience.data[:60])
    match experience.ending:
        case Ending.REFUSED:
            return os.strerror(getattr(errno, last, errno.ECONNREFUSED)).lower()
        case Ending.CONNECT_TIMEOUT:
            return f"no connection within {plan.timeout:g} s"
        case Ending.TLS_ERROR:
            return f"the TLS handshake failed: {last.removeprefix('tls: ').replace('_', ' ')}"
        case Ending.SILENT:
            return (
                f"not a byte within {plan.timeout:g} s; "
                "if it waits for a request, name that with --send or --profile"
            )
        case Ending.INCOMPLETE:
            return (
                f"it said '{heard}', and did not end within {plan.timeout:g} s; "
                "name what ends its greeting with --until or --profile"
            )
        case Ending.OTHER if plan.expect and plan.expect not in experience.data:
            return f"it said '{heard}', without '{escape(plan.expect)}'"
        case Ending.OTHER:
            return f"it refused: '{heard}'"
        case Ending.LOST:
            how = "a reset" if last == "RST" else "the end of the stream"
            then = f"after '{heard}'" if heard else "without a byte"
            return f"{how} {then}; it may want a request (--send, --profile), --tls or --proxy-protocol"
    return "this machine has no descriptor, port or memory left for a client"


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

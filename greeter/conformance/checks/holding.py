"""Checks with clients that hold a connection: silent ones, and greeted ones that never close."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from greeter.conformance.findings import Ending, Finding, Severity, Tally, judged
from greeter.conformance.registry import register
from greeter.conformance.tested_service import MAX_CLIENTS

if TYPE_CHECKING:
    from greeter.conformance.probe import Probe
    from greeter.conformance.tested_service import TestedService

# How soon a control client must be greeted beside those that hold, in seconds.
PROMPT = 2.0
# How many more ask if the first were refused in words.
ASKED_AGAIN = 7


async def connects_only(probe: Probe) -> Ending:
    """The script of a client that connects and says nothing."""
    await probe.connect()
    return Ending.SILENT


async def greeted_and_stays(probe: Probe) -> Ending:
    """The script of a client that receives its greeting and does not close."""
    await probe.open()
    await probe.listen()
    return Ending.GREETED


async def controls(service: TestedService, count: int = 3, timeout: float = PROMPT) -> Tally:
    """Let control clients ask, one after the other, whether the service still greets within ``timeout``."""
    tally = Tally()
    for _ in range(count):
        tally.add(await service.control(timeout))
    return tally


async def _beside_silent(service: TestedService, count: int, *, some_refused: bool = False) -> Finding:
    held = min(count, MAX_CLIENTS - 1) if service.gentle else count
    async with service.watching_for_lateness(), service.held(held, connects_only):
        tally = await controls(service)
        if some_refused and set(tally.classes) == {Ending.OTHER}:
            tally = tally.joined(await controls(service, ASKED_AGAIN))
    kept = [Ending.GREETED, Ending.RESET]
    if some_refused and any(tally.classes[ending] for ending in kept):
        kept.append(Ending.OTHER)
    finding = judged(tally, *kept, late=service.late)
    figure = tally.figure(Ending.GREETED, Ending.RESET)
    return dataclasses.replace(finding, figure=figure + (f" beside {held} silent" if held < count else ""))


@register(
    "silent",
    "greets others while 10 clients say nothing",
    Severity.MUST,
    why="One client that does not speak, or reads slowly, would keep all others waiting.",
    sources=("CWE-400", "RFC 4732"),
    cause="The service handles one client after the other, or has fewer slots than that.",
    cure="Handle clients concurrently, with a deadline for each.",
    seen_in="gunicorn with its sync worker",
)
async def silent(service: TestedService) -> Finding:
    """3 control clients beside 10 silent ones; beside 3 of another machine's, without --yes.

    That some are refused in words is a limit at work: from 10 on, MaxStartups of OpenSSH refuses a third.
    """
    return await _beside_silent(service, 10, some_refused=True)


@register(
    "silent-100",
    "greets others while 100 clients say nothing",
    Severity.SHOULD,
    why="A hundred idle connections are cheap to make, and lock others out.",
    sources=("CWE-400", "RFC 4732"),
    cause="A limit of the service on connections, or on processes, is reached.",
    cure="Raise the limit, make it count per address, and cut off silent clients sooner.",
    heavy=True,
    seen_in="OpenSSH (MaxStartups), postfix (100 processes), vsftpd (50 for each address), gunicorn",
)
async def silent_100(service: TestedService) -> Finding:
    """3 control clients beside 100 silent ones."""
    return await _beside_silent(service, 100)


@register(
    "kept",
    "greets others while 100 greeted clients do not close",
    Severity.MUST,
    why="Clients that never close would fill the service, one descriptor each.",
    sources=("RFC 9293 3.6",),
    cause="A connection counts against a limit until its client closes, or the service waits for that.",
    cure="Linger for a bounded time after the greeting, and beside other clients.",
    heavy=True,
    needs=("eof",),
)
async def kept(service: TestedService) -> Finding:
    """3 control clients beside 100 that were greeted and stay."""
    async with service.watching_for_lateness(), service.held(100, greeted_and_stays):
        tally = await controls(service)
    return judged(tally, Ending.GREETED, Ending.RESET, late=service.late)

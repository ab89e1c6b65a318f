"""Checks with many clients at once: in a burst, after resets, and as many as the service holds."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING

from greeter.conformance.checks.holding import connects_only, controls
from greeter.conformance.findings import Ending, Finding, Severity, Tally, Verdict, judged, unsure
from greeter.conformance.listening import listening
from greeter.conformance.registry import register
from greeter.conformance.tested_service import hears

if TYPE_CHECKING:
    from greeter.conformance.probe import Probe
    from greeter.conformance.tested_service import TestedService

ROUNDS = 3
CROWD, LARGE_CROWD = 200, 1000
RESETS = 1000
# How much more time a crowd has over TLS: its handshakes take seconds of this machine's processors.
TLS_FACTOR = 3.0
MANY = 500


async def _burst(service: TestedService, count: int, *, prompt: bool) -> Finding:
    """The worst of rounds of ``count`` clients at once; with ``prompt``, one that waited is lost too."""
    worst, worst_lost, worst_again = Tally(), -1, 0
    timeout = service.plan.timeout * (1.0 if service.plan.tls is None else TLS_FACTOR)
    for _ in range(ROUNDS):
        experiences = await service.crowd(count, hears, timeout)
        # After a second, at the earliest (RFC 6298 2).
        again = sum(experience.syn_again for experience in experiences)
        tally = Tally(experiences)
        lost = tally.all_but(Ending.GREETED, Ending.RESET, Ending.LOCAL)
        if (lost, again) > (worst_lost, worst_again):
            worst, worst_lost, worst_again = tally, lost, again
        if (prompt and again) or (lost and not service.late):
            break  # no other round can change that, and each waits for its lost clients
    finding = judged(worst, Ending.GREETED, Ending.RESET, late=service.late)
    socket = listening(service.dial.family, service.dial.address)
    figure = finding.figure
    short = socket is not None and socket.backlog < count
    if worst_again:
        figure += f", {worst_again} late"
    if prompt and worst_again and finding.verdict is not Verdict.FAIL:
        # A SYN was dropped because the queue was full, unless it had room for all of them.
        certain = short or (socket is None and not service.late)
        finding = dataclasses.replace(finding, verdict=Verdict.FAIL if certain else Verdict.UNSURE)
    elif prompt and short and finding.verdict is Verdict.PASS:
        # This machine was slow enough for the service to keep up. Another may not be.
        finding = dataclasses.replace(finding, verdict=Verdict.INFO)
    cause = ""
    if socket is not None:
        cause = f"The accept queue of the service has room for {socket.backlog} connections."
        figure += f"; queue {socket.backlog}"
    data: dict[str, object] = {"rounds": ROUNDS, "syn_again": worst_again}
    return dataclasses.replace(finding, figure=figure, cause=cause, data=data)


@register(
    "burst",
    "greets 200 clients that connect at once",
    Severity.MUST,
    why="A SYN that finds the accept queue full is dropped, and its client waits for a second, or for ever.",
    sources=("listen(2)", "RFC 6298 2"),
    cause="The accept queue is short, or the service accepts slowly.",
    cure="Listen with a longer backlog (and raise net.core.somaxconn), and accept in batches.",
    heavy=True,
    seconds=30.0,
    seen_in="socketserver, twisted, vsftpd, OpenSSH (MaxStartups)",
)
async def burst(service: TestedService) -> Finding:
    """3 rounds, of which the worst counts."""
    return await _burst(service, CROWD, prompt=False)


@register(
    "burst-1000",
    "greets 1,000 clients that connect at once, each within a second",
    Severity.SHOULD,
    why="A SYN that finds the accept queue full is dropped, and its client waits for a second, or for ever.",
    sources=("listen(2)", "RFC 4987"),
    cause="The accept queue is short, or the service accepts slowly.",
    cure="Listen with a longer backlog (and raise net.core.somaxconn), and accept in batches.",
    heavy=True,
    seconds=40.0,
    seen_in="asyncio as documented (a backlog of 100), aiosmtpd, socketserver",
)
async def burst_1000(service: TestedService) -> Finding:
    """3 rounds, of which the worst counts. It is a figure only if a shorter queue was enough."""
    return await _burst(service, LARGE_CROWD, prompt=True)


@register(
    "resets",
    "greets clients after 1,000 others that reset their connection",
    Severity.MUST,
    why="A port scan or an impatient balancer resets connections before they are accepted.",
    sources=("accept(2)",),
    cause="An error of accept or of the first send ends the service, or keeps one of its slots.",
    cure="Take errors of one connection as its end only, and accept again.",
    heavy=True,
    seconds=20.0,
    seen_in="a loop that accepts and sends without a handler of errors, xinetd with Debian's settings",
)
async def resets(service: TestedService) -> Finding:
    """5 control clients right after, and 5 a second later.

    Right after, a refusal in words is a limit at work, which has not seen yet that the clients are gone.
    """

    async def resets_it(probe: Probe) -> Ending:
        await probe.connect()
        probe.abort()
        return Ending.RESET

    made = await service.clients(RESETS, resets_it, at_once=50)
    if made.classes[Ending.LOCAL]:
        return unsure(f"{made.classes[Ending.LOCAL]} of {RESETS} could not be made by this machine")
    async with service.watching_for_lateness():
        # It may have all of them to accept before.
        at_once = await controls(service, 5, service.plan.timeout)
        await asyncio.sleep(1.0)
        later = await controls(service, 5, service.plan.timeout)
    kept = (Ending.GREETED, Ending.RESET)
    finding = judged(later, *kept, late=service.late)
    if finding.verdict is Verdict.PASS:
        finding = judged(at_once.joined(later), *kept, Ending.OTHER, late=service.late)
    return dataclasses.replace(finding, figure=at_once.joined(later).figure(*kept))


@register(
    "many-open",
    f"greets others while up to {MANY} clients are connected",
    Severity.SHOULD,
    why="The number of connections at a time is what a flood of idle ones has to reach.",
    sources=("CWE-770",),
    cause="A limit of the service on connections, processes or descriptors is reached.",
    cure="Raise the limit, make it count per address, and cut off silent clients sooner.",
    heavy=True,
    seconds=30.0,
    seen_in="mariadb (max_connections), xinetd, proftpd",
)
async def many_open(service: TestedService) -> Finding:
    """A control client at every 100."""
    tally = Tally()
    async with contextlib.AsyncExitStack() as stack:
        for held in range(100, MANY + 1, 100):
            await stack.enter_async_context(service.held(100, connects_only))
            experience = await service.control(2.0)
            tally.add(experience)
            if experience.ending not in (Ending.GREETED, Ending.RESET):
                finding = judged(tally, Ending.GREETED, Ending.RESET, late=service.late)
                return dataclasses.replace(finding, figure=f"{experience.ending} at {held} open")
    return dataclasses.replace(
        judged(tally, Ending.GREETED, Ending.RESET), verdict=Verdict.INFO, figure=f"{MANY} open"
    )

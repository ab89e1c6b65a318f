"""Checks of a service that answers datagrams, with many at once, and while it is reloaded and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING

from greeter.conformance.checks.lifecycle import (
    QUEUED,
    RELOADS,
    STOP_SECONDS,
    refuses,
    started_again,
    still_accepts,
)
from greeter.conformance.datagram_probe import DatagramProbe
from greeter.conformance.findings import Ending, Experience, Finding, Severity, Tally, Verdict, judged, unsure
from greeter.conformance.probe import Ended
from greeter.conformance.process import command, resume_when_told, run_command, serving_pids, standing_still
from greeter.conformance.registry import register

if TYPE_CHECKING:
    from greeter.conformance.datagram_service import DatagramService

MANY = 100
BURST, BURST_CLIENTS = 1000, 10
# A burst is over when no reply has come for so long, in seconds.
QUIET_SECONDS = 0.5
LOAD_CLIENTS = 10
# How long the reply to a closed client and its error may take, in seconds, before the next client asks.
ICMP_SECONDS = 0.05


@register(
    "udp-icmp",
    "answers others after clients that have closed before its reply",
    Severity.MUST,
    why="A reply to a closed port comes back as an error, which the kernel may report at another datagram.",
    sources=("udp(7)", "ip(7)"),
    cause="The service takes the error of one client for an error of its socket, and ends.",
    cure="Go on after ECONNREFUSED and the other errors of ICMP: they belong to an earlier datagram.",
    datagrams=True,
)
async def udp_icmp(service: DatagramService) -> Finding:
    """10 clients, each after one that has closed."""
    tally = Tally()
    async with service.watching_for_lateness():
        for _ in range(10):
            with contextlib.suppress(Ended):
                async with DatagramProbe(service.dial) as probe:
                    probe.send(service.request)
            await asyncio.sleep(ICMP_SECONDS)
            tally.add(await service.ask())
            if tally.all_but(Ending.GREETED):
                break
    return judged(tally, late=service.late)


@register(
    "udp-many",
    "answers 100 clients that ask at once",
    Severity.MUST,
    why="What arrives while a service answers another client waits in its receive buffer, or is dropped.",
    sources=("socket(7)", "RFC 8085 3.3"),
    cause="The service starts a process for each datagram, or its receive buffer is small.",
    cure="Receive in a loop until the buffer is empty, and raise SO_RCVBUF.",
    heavy=True,
    datagrams=True,
    seen_in="xinetd, socat UDP-RECVFROM",
)
async def udp_many(service: DatagramService) -> Finding:
    """Each asks once: 100 datagrams fit the receive buffer that Linux gives by default."""
    return judged(await service.crowd(MANY), late=service.late)


@register(
    "udp-burst",
    "answers 1,000 datagrams that are sent without a pause",
    Severity.INFO,
    why="A burst that is longer than the receive buffer is dropped, and each of its clients asks again.",
    sources=("socket(7)",),
    cause="The receive buffer is full: it takes about 270 small datagrams unless the service asks for more.",
    cure="Raise SO_RCVBUF (and net.core.rmem_max), and receive in batches.",
    heavy=True,
    datagrams=True,
)
async def udp_burst(service: DatagramService) -> Finding:
    """10 clients that send 100 each. It is a figure only: it depends on the speed of this machine."""
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        probes = [await stack.enter_async_context(DatagramProbe(service.dial)) for _ in range(BURST_CLIENTS)]
        start = last = loop.time()
        try:
            for number in range(BURST):
                probes[number % BURST_CLIENTS].send(service.request)
        except Ended as ended:
            return unsure(f"a datagram was not sent: {ended.ending}")
        count = 0
        while count < BURST and loop.time() < last + QUIET_SECONDS:
            await asyncio.sleep(0.005)
            if (now := sum(probe.more() for probe in probes)) > count:
                count, last = now, loop.time()
    seconds = last - start
    figure = f"{count} of {BURST} answered in {seconds * 1e3:.0f} ms"
    data: dict[str, object] = {"answered": count, "seconds": round(seconds, 4)}
    return Finding(Verdict.INFO, figure, {"greeted": count, "silent": max(0, BURST - count)}, data=data)


@register(
    "udp-reload",
    "answers every datagram while it is reloaded twice",
    Severity.SHOULD,
    why="A client that has no reply waits until it asks again, and a refused one may give up.",
    sources=("RFC 8085 3.3",),
    cause="The socket is closed and opened again, with datagrams in its receive buffer.",
    cure="Keep the socket open across a reload.",
    heavy=True,
    needs=("restart",),
    seconds=60.0,
    datagrams=True,
    seen_in="xinetd",
)
async def udp_reload(service: DatagramService) -> Finding:
    """10 clients that ask again as soon as they have their reply."""
    assert service.plan.restart is not None
    tally, ended = Tally(), False

    async def asks_again() -> None:
        while not ended:
            experience = await service.ask()
            tally.add(experience)
            if experience.ending is not Ending.GREETED:
                await asyncio.sleep(0.02)

    tasks = [asyncio.create_task(asks_again()) for _ in range(LOAD_CLIENTS)]
    try:
        async with service.watching_for_lateness():
            for _ in range(RELOADS):
                await asyncio.sleep(0.5)
                if failure := await run_command(service.plan.restart):
                    return unsure(f"--restart: {failure}")
            await asyncio.sleep(0.5)
            ended = True
            await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    finding = judged(tally, late=service.late)
    if finding.verdict is Verdict.PASS:
        return dataclasses.replace(finding, figure=f"0 of {tally.total} lost")
    return finding


@register(
    "udp-stop",
    "answers what is in its receive buffer when it is stopped",
    Severity.SHOULD,
    why="The kernel discards what a closed socket had received, and its client waits until it asks again.",
    sources=("RFC 8085 3.3",),
    cause="The socket is closed at the signal, with datagrams in its receive buffer.",
    cure="At the signal, receive and answer until the buffer is empty, and then close the socket.",
    heavy=True,
    needs=("pid", "stop"),
    seconds=60.0,
    datagrams=True,
    seen_in="nginx, asyncio, xinetd, socat",
)
async def udp_stop(service: DatagramService) -> Finding:
    """20 clients ask while it stands still; then it is told to stop."""
    plan = service.plan
    assert plan.stop is not None
    assert plan.pid is not None
    pids = serving_pids(service.dial, plan.pid)
    try:
        async with contextlib.AsyncExitStack() as stack:
            probes = [await stack.enter_async_context(DatagramProbe(service.dial)) for _ in range(QUEUED)]
            with standing_still(pids):
                for probe in probes:
                    probe.send(service.request)
                async with command(plan.stop) as stopping:
                    service.stopped = True
                    await resume_when_told(pids, plan.pid, stopping)
                    tally = Tally(await asyncio.gather(*(_replied(probe, plan.timeout) for probe in probes)))
                    async with asyncio.timeout(STOP_SECONDS):
                        failure = await stopping.wait()
                        if not failure:
                            await refuses(service)
    except PermissionError:
        return unsure(f"process {plan.pid} may not be stopped by this user")
    except Ended as ended:
        return unsure(f"a datagram was not sent: {ended.ending}")
    except TimeoutError:
        return still_accepts(service)
    if failure:
        service.stopped = False
        return unsure(f"--stop: {failure}")
    if failure := await started_again(service):
        return unsure(failure)
    return judged(tally)


async def _replied(probe: DatagramProbe, timeout: float) -> Experience:
    try:
        return probe.experience(await probe.reply(timeout))
    except Ended as ended:
        return probe.experience(ended.ending)

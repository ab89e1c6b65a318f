"""Checks of what the service's process uses: descriptors that run out, and wake-ups while nothing happens."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from typing import TYPE_CHECKING

from greeter.conformance.findings import Ending, Finding, Severity, Tally, Verdict, judged, skipped, unsure
from greeter.conformance.probe import Ended, Probe
from greeter.conformance.process import log_size, room_for, runnable_seconds, serving_pids, wakeups
from greeter.conformance.registry import register
from greeter.conformance.tested_service import followed, hears_on

if TYPE_CHECKING:
    from collections.abc import Callable

    from greeter.conformance.tested_service import TestedService

ROOM, CLIENTS = 40, 150
HOLD_SECONDS = 1.0
# What connecting leaves to do is not counted, for as long as this from the start, in seconds.
SETTLE_SECONDS = 0.3
# Of a core, to run on or to wait for: nothing happens meanwhile.
MOST_CPU = 0.2
# Bytes. One line for each of the clients is less; a traceback for each time that accept fails is more.
MOST_LOG = 30_000
IDLE_SECONDS = 2.0


@register(
    "descriptors",
    "greets 150 clients with descriptors for 40",
    Severity.SHOULD,
    why="A service that runs out of descriptors and accepts in a loop takes a whole core and fills its log.",
    sources=("accept(2)", "cpython #151615"),
    cause="The error of accept is logged and tried again at once, or the connection is closed unheard.",
    cure="Stop accepting at a limit below that of descriptors, and go on when a connection has ended.",
    heavy=True,
    needs=("tcp", "pid"),
    seconds=30.0,
    seen_in="asyncio, uvloop, node, redis, aiosmtpd, hypercorn",
)
async def descriptors(service: TestedService) -> Finding:
    """They hold their connection for a second, in which the service has nothing to do, before they listen."""
    assert service.plan.pid is not None
    pids = serving_pids(service.dial, service.plan.pid)
    await _settled(pids[1:] or pids)
    pids = serving_pids(service.dial, service.plan.pid)  # without those that served only one client
    accepting = pids[1:] or pids
    probes = [Probe(service.dial, timeout=service.plan.timeout + 10.0) for _ in range(CLIENTS)]
    full = False
    tally = Tally()
    loop = asyncio.get_running_loop()
    try:
        with contextlib.ExitStack() as stack:
            limits: dict[int, int] = {}
            for pid in accepting:
                with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it has ended meanwhile
                    limits[pid] = stack.enter_context(room_for(pid, ROOM))
            log = _total(log_size, pids)
            await asyncio.gather(*(_opens(probe, tally) for probe in probes))
            full = await _runs_out(limits, SETTLE_SECONDS)
            runnable, start = _total(runnable_seconds, pids), loop.time()
            full = await _runs_out(limits, HOLD_SECONDS) or full
            used = max(0.0, _total(runnable_seconds, pids) - runnable) / (loop.time() - start)
            await asyncio.gather(*(_listens(probe, tally) for probe in probes if not probe.closed))
            written = _total(log_size, pids) - log
    except PermissionError:
        return unsure(f"the limits of process {service.plan.pid} may not be changed by this user")
    finally:
        for probe in probes:
            probe.close()
    excess = used > MOST_CPU * len(accepting) or written > MOST_LOG
    if not full and not excess and not tally.all_but(Ending.GREETED, Ending.RESET):
        return skipped("the service never ran out: it does not keep a connection for a second")
    finding = judged(tally, Ending.GREETED, Ending.RESET)
    figure = f"{finding.figure}, {used * 100:.0f} % of a core, {written / 1000:.0f} kB of log"
    if excess:
        finding = dataclasses.replace(finding, verdict=Verdict.FAIL)
    data: dict[str, object] = {"cpu": round(used, 3), "log_bytes": written}
    return dataclasses.replace(finding, figure=figure, data=data)


async def _runs_out(limits: dict[int, int], seconds: float) -> bool:
    """Wait for ``seconds``. Returns True if a process had no more than 2 descriptors left meanwhile."""
    loop, full = asyncio.get_running_loop(), False
    end = loop.time() + seconds
    while loop.time() < end:
        full = full or any(_free(pid, limit) <= 2 for pid, limit in limits.items())
        await asyncio.sleep(0.02)
    return full


async def _opens(probe: Probe, tally: Tally) -> None:
    try:
        await probe.connect()
    except Ended as end:
        tally.add(probe.experience(end.ending))
        probe.close()


async def _listens(probe: Probe, tally: Tally) -> None:
    tally.add(await followed(probe, hears_on))
    probe.close()  # makes room for the next


async def _settled(pids: list[int]) -> None:
    """Wait until the connections of earlier checks are closed, or no more are."""
    counts: list[int] = []
    while len(counts) < 40 and (len(counts) < 3 or len(set(counts[-3:])) > 1):
        await asyncio.sleep(0.1)
        counts.append(sum(len(_opened(pid)) for pid in pids))


def _free(pid: int, limit: int) -> int:
    """Returns how many descriptors below its limit a process can still open."""
    return limit - sum(number < limit for number in _opened(pid))


def _opened(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return []


def _total(read: Callable[[int], float], pids: list[int]) -> float:
    return sum(map(read, pids))


@register(
    "wakes",
    "does not wake up while nothing happens",
    Severity.INFO,
    why="Each wake-up keeps a processor from sleeping, on every machine that the service runs on.",
    sources=("proc(5)",),
    cause="The service polls, or has a timer that always rings.",
    cure="Wait for events, and set a timer only while something is due.",
    needs=("pid",),
)
async def wakes(service: TestedService) -> Finding:
    """Context switches of all its processes and threads, over 2 seconds."""
    assert service.plan.pid is not None
    pids = serving_pids(service.dial, service.plan.pid)
    await asyncio.sleep(0.5)
    before = sum(map(wakeups, pids))
    await asyncio.sleep(IDLE_SECONDS)
    rate = (sum(map(wakeups, pids)) - before) / IDLE_SECONDS
    return Finding(Verdict.INFO, f"{rate:.1f} a second", data={"wakeups_per_s": rate})

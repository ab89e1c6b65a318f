"""Checks of a reload and of a stop, under load and with clients in the accept queue. They come last."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from greeter.conformance.findings import Ending, Finding, Severity, Tally, Verdict, judged, unsure
from greeter.conformance.listening import listening
from greeter.conformance.probe import Ended, Probe
from greeter.conformance.process import (
    command,
    listening_pid,
    resume_when_told,
    run_command,
    serving_pids,
    standing_still,
    start_service,
)
from greeter.conformance.registry import register
from greeter.conformance.tested_service import followed, hears, hears_on

if TYPE_CHECKING:
    from greeter.conformance.target_service import TargetService
    from greeter.conformance.tested_service import TestedService

RELOADS = 2
LOAD_CLIENTS = 50
QUEUED = 20
# How long a service may take to stop, and to greet again after its start, in seconds.
STOP_SECONDS = START_SECONDS = 15.0


class _Load:
    """Clients that connect again as soon as they are done, until ``end``."""

    def __init__(self, service: TestedService, clients: int) -> None:
        self.tally = Tally()
        self._service, self._ended = service, False
        self._tasks = [asyncio.create_task(self._loop()) for _ in range(clients)]

    async def _loop(self) -> None:
        while not self._ended:
            experience = await self._service.client(hears)
            self.tally.add(experience)
            if experience.ending in (Ending.REFUSED, Ending.LOCAL):
                await asyncio.sleep(0.02)

    async def end(self) -> Tally:
        """Let the clients that are connected finish, and return how all of them ended."""
        self._ended = True
        await asyncio.gather(*self._tasks)
        return self.tally

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()


@register(
    "reload",
    "loses no client while it is reloaded twice",
    Severity.MUST,
    why="A deployment that loses clients does so at every change of a certificate or a setting.",
    sources=("gunicorn #3394", "gunicorn #2296"),
    cause="The listening socket is closed and opened again, or workers close it with clients in its queue.",
    cure="Keep the listening socket open across a reload, and let the old workers drain the accept queue.",
    heavy=True,
    needs=("restart",),
    seconds=60.0,
    seen_in="OpenSSH",
)
async def reload(service: TestedService) -> Finding:
    """50 clients in a closed loop; a refused one is lost too."""
    assert service.plan.restart is not None
    load = _Load(service, LOAD_CLIENTS)
    try:
        async with service.watching_for_lateness():
            for _ in range(RELOADS):
                await asyncio.sleep(0.5)
                if failure := await run_command(service.plan.restart):
                    return unsure(f"--restart: {failure}")
            await asyncio.sleep(1.0)
            tally = await load.end()
    finally:
        load.cancel()
    finding = judged(tally, Ending.GREETED, Ending.RESET, late=service.late)
    if finding.verdict is Verdict.PASS:
        return dataclasses.replace(finding, figure=f"0 of {tally.total} lost")
    return finding


@register(
    "stop",
    "greets the clients in its accept queue when it is stopped",
    Severity.MUST,
    why="A connection in the accept queue is established for its client, and closing the socket resets it.",
    sources=("tcp(7)", "gunicorn #2409", "kubernetes #43576"),
    cause="The listening socket is closed at the signal, with connections in its queue.",
    cure="At the signal, accept until the queue is empty, greet those clients, and then close the socket.",
    heavy=True,
    needs=("tcp", "pid", "stop"),
    seconds=60.0,
    seen_in="nginx, haproxy, node, Go, asyncio, OpenSSH, gunicorn",
)
async def stop(service: TestedService) -> Finding:
    """20 clients, or as many as its queue takes, connect while it stands still; then it is told to stop."""
    plan = service.plan
    assert plan.stop is not None
    assert plan.pid is not None
    pids = serving_pids(service.dial, plan.pid)
    failure = ""
    socket = listening(service.dial.family, service.dial.address)
    # Linux queues one connection more than the backlog.
    count = QUEUED if socket is None else min(QUEUED, socket.backlog + 1)
    probes = [Probe(service.dial, timeout=STOP_SECONDS) for _ in range(count)]
    try:
        with standing_still(pids):
            for probe in probes:
                await probe.connect()
            async with command(plan.stop) as stopping:
                service.stopped = True
                await resume_when_told(pids, plan.pid, stopping)
                tally = Tally(await asyncio.gather(*(followed(probe, hears_on) for probe in probes)))
                async with asyncio.timeout(STOP_SECONDS):
                    failure = await stopping.wait()
                    if not failure:
                        await refuses(service)
    except PermissionError:
        return unsure(f"process {plan.pid} may not be stopped by this user")
    except Ended as end:
        return unsure(f"a client could not be queued: {end.ending}")
    except TimeoutError:
        return still_accepts(service)
    finally:
        for probe in probes:
            probe.close()
    if failure:
        service.stopped = False
        return unsure(f"--stop: {failure}")
    if failure := await started_again(service):
        return unsure(failure)
    return judged(tally, Ending.GREETED, Ending.RESET)


@register(
    "stop-load",
    "greets or refuses every client while it is stopped under load",
    Severity.MUST,
    why="A client that the kernel has accepted, and that is reset, cannot know whether to try again.",
    sources=("tcp(7)", "gunicorn #2409"),
    cause="The listening socket is closed while handshakes complete.",
    cure="Stop new handshakes first, accept what has completed, and then close the socket.",
    heavy=True,
    needs=("tcp", "stop", "start"),
    seconds=60.0,
    seen_in="node, OpenSSH, gunicorn; now and then nginx, Go, asyncio, haproxy",
)
async def stop_load(service: TestedService) -> Finding:
    """10 clients in a closed loop. That none was lost proves nothing, and is not said to."""
    assert service.plan.stop is not None
    load = _Load(service, 10)
    try:
        await asyncio.sleep(0.5)
        service.stopped = True
        if failure := await run_command(service.plan.stop):
            service.stopped = False
            return unsure(f"--stop: {failure}")
        async with asyncio.timeout(STOP_SECONDS):
            await refuses(service)
        tally = await load.end()
    except TimeoutError:
        return still_accepts(service)
    finally:
        load.cancel()
    if failure := await started_again(service):
        return unsure(failure)
    finding = judged(tally, Ending.GREETED, Ending.RESET, Ending.REFUSED, Ending.CONNECT_TIMEOUT)
    if finding.verdict is Verdict.PASS:
        greeted = tally.classes[Ending.GREETED] + tally.classes[Ending.RESET]
        return dataclasses.replace(
            finding, verdict=Verdict.INFO, figure=f"none lost of {greeted} in one stop"
        )
    return finding


async def refuses(service: TargetService) -> None:
    """Wait until the service is refused."""
    while (await service.control(1.0)).ending not in (Ending.REFUSED, Ending.CONNECT_TIMEOUT):  # noqa: ASYNC110
        await asyncio.sleep(0.05)  # another process tells of no event


def still_accepts(service: TargetService) -> Finding:
    """Returns what is found of a service that does not end."""
    service.stopped = False
    return unsure(f"the service still accepts {STOP_SECONDS:g} s after --stop")


async def started_again(service: TargetService) -> str:
    """Start the service if it is known how, and wait until it greets. Returns why it does not, or ""."""
    if service.plan.start is None:
        return ""
    service.stopped = False
    start_service(service.plan.start)
    loop = asyncio.get_running_loop()
    end = loop.time() + START_SECONDS
    while (await service.control()).ending not in (Ending.GREETED, Ending.RESET):
        if loop.time() > end:
            return f"--start: the service does not greet within {START_SECONDS:g} s"
        await asyncio.sleep(0.05)
    if service.plan.pid is not None:
        pid = listening_pid(service.dial)
        if pid is None:
            return "--start: the process that listens now is not found"
        service.plan = dataclasses.replace(service.plan, pid=pid)
    return ""

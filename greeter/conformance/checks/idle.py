"""Checks that wait, beside the others: how long the service keeps a connection that nothing comes from."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from greeter.conformance.findings import Ending, Finding, Severity, Verdict, skipped
from greeter.conformance.probe import Ended, Probe
from greeter.conformance.registry import register

if TYPE_CHECKING:
    from greeter.conformance.tested_service import TestedService

# When a greeted client that does not close looks whether it is let go, in seconds.
LOOKS = (1.0, 3.0, 10.0, 30.0)
# How long the answer to a byte may take, in seconds.
ANSWER = 0.2


@register(
    "let-go",
    "lets go of a greeted client that does not close",
    Severity.SHOULD,
    why="Each such client keeps a descriptor of the service for as long as it likes.",
    sources=("CWE-772", "CWE-404"),
    cause="The service waits for the client's close without a deadline.",
    cure="Close the connection some seconds after the greeting, whether or not the client has closed.",
    background=True,
    needs=("tcp", "eof"),
    seen_in="node",
)
async def let_go(service: TestedService) -> Finding:
    """A byte that the closed socket answers with a reset tells that the client is let go."""
    limit = service.plan.idle_limit
    looks = [limit] if service.gentle else sorted({min(look, limit) for look in LOOKS})
    probes = [Probe(service.dial, timeout=limit + 10.0) for _ in looks]
    try:
        for probe in probes:
            try:
                await probe.open()
                await probe.listen()
            except Ended as end:
                return Finding(Verdict.UNSURE, f"a client of this check was not greeted: {end.ending}")
        waited = 0.0
        for probe, look in zip(probes, looks, strict=True):
            await asyncio.sleep(look - waited)
            waited = look
            if await _is_let_go(probe):
                return Finding(Verdict.PASS, f"within {look:g} s", data={"within_s": look})
        story = probes[-1].experience(Ending.GREETED).told()
        return Finding(Verdict.FAIL, f"kept for {limit:g} s", {"kept": 1}, story)
    finally:
        for probe in probes:
            probe.close()


async def _is_let_go(probe: Probe) -> bool:
    try:
        await probe.send_raw(b"\n")
    except Ended:
        return True
    await asyncio.sleep(ANSWER)
    return probe.is_reset()


@register(
    "cut-off",
    "closes the connection of a client that says nothing, or a byte a second",
    Severity.SHOULD,
    why="Each such client keeps a slot of the service for as long as it likes.",
    sources=("CWE-400",),
    cause="The service waits for its client without a deadline, or sets the deadline anew at each byte.",
    cure="Give the whole exchange a deadline, which does not move with what arrives.",
    background=True,
    needs=("tcp",),
    seen_in="postfix, vsftpd, proftpd, uvicorn, redis, memcached; OpenSSH and nginx take over 30 seconds",
)
async def cut_off(service: TestedService) -> Finding:
    """One client that says nothing, and one that sends a byte every second."""
    if service.plan.until.kind == "eof" and not service.plan.send:
        return skipped("the service greets without being asked, and closes")
    return await _held_open(service, drip=service.plan.send[:1] or b"x")


@register(
    "tls-cut-off",
    "closes the connection of a client that does not begin its handshake",
    Severity.SHOULD,
    why="Each such client keeps a slot of the service for as long as it likes.",
    sources=("CWE-400",),
    cause="The handshake has no deadline.",
    cure="Give the handshake a deadline of some seconds.",
    background=True,
    needs=("tcp", "tls"),
    seen_in="node, Go, socat, ncat; nginx, asyncio and uvloop take over 30 seconds",
)
async def tls_cut_off(service: TestedService) -> Finding:
    """One client that says nothing."""
    return await _held_open(service, drip=b"")


async def _held_open(service: TestedService, *, drip: bytes) -> Finding:
    """Judge when the service ends connections that say nothing, or ``drip`` every second."""
    limit = service.plan.idle_limit
    waits = [_until_closed(service, b"", limit)] + ([_until_closed(service, drip, limit)] if drip else [])
    closed = await asyncio.gather(*waits)
    names = ("silent", "a byte a second")
    figures = [
        f"{name}: {'kept' if seconds is None else f'closed after {seconds:.0f} s'}"
        for name, seconds in zip(names, closed, strict=False)
    ]
    verdict = Verdict.FAIL if None in closed else Verdict.PASS
    data = dict(zip(("silent_s", "dripping_s"), closed, strict=False))
    kept = closed.count(None)
    return Finding(verdict, ", ".join(figures), {"kept": kept} if kept else {}, data=dict(data))


async def _until_closed(service: TestedService, drip: bytes, limit: float) -> float | None:
    """Returns after how many seconds the service closed the connection; None if it did not."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    dial = dataclasses.replace(service.dial, timeout=limit)
    async with Probe(dial) as probe:
        try:
            await probe.connect()
            listening = asyncio.ensure_future(probe.drain())
            try:
                while drip and not listening.done():
                    await asyncio.wait([listening], timeout=1.0)
                    if not listening.done():
                        await probe.send_raw(drip)
                await listening
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
        except Ended as end:
            if end.ending in (Ending.SILENT, Ending.INCOMPLETE):
                return None
        return loop.time() - start

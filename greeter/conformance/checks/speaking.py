"""Checks with clients that speak first: what they say lies unread when the service closes.

A close with unread input makes the kernel send a reset (RFC 9293 3.6.1, RFC 2525 2.17), which discards what
the client's kernel has not delivered yet, and which clients on asyncio and others report before the data that
arrived. So a reset after the whole greeting is judged as a loss.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from greeter.conformance.findings import Ending, Finding, Severity, judged
from greeter.conformance.probe import Ended
from greeter.conformance.profiles import MUCH
from greeter.conformance.registry import register

if TYPE_CHECKING:
    from greeter.conformance.probe import Probe
    from greeter.conformance.tested_service import TestedService

WHY = "A close with unread input makes the kernel send a reset, which can overtake the greeting."
CAUSE = "The service closes the socket while what the client sent is unread."
CURE = (
    "After the greeting, shut down the sending side, read until the client closes (with a deadline), "
    "then close."
)

EIGHTEEN = b"EHLO client.test\r\n"
TALK_SECONDS, TALK_PAUSE = 1.0, 0.05


@register(
    "speaks-first",
    "greets a client that speaks first, or goes on talking",
    Severity.MUST,
    why=WHY,
    sources=("RFC 9293 3.6.1", "RFC 2525 2.17", "RFC 9112 9.6"),
    cause=CAUSE,
    cure=CURE,
    needs=("eof", "junk"),
    seen_in="nginx stream return, asyncio and uvloop as documented, Go, trio, gevent, twisted, xinetd",
)
async def speaks_first(service: TestedService) -> Finding:
    """40 clients that say a line, and 4 that say a byte every 50 ms for a second."""
    hello = service.plan.hello or EIGHTEEN

    async def says_a_line(probe: Probe) -> Ending:
        await probe.open()
        await probe.send(hello)
        return await probe.finish()

    tally = await service.clients(40, says_a_line)
    talkers = await service.clients(4, talks)
    return judged(tally.joined(talkers), late=service.late)


async def talks(probe: Probe) -> Ending:
    """The script of a client that says a byte every 50 ms, for a second, beside listening."""
    await probe.open()
    listening = asyncio.ensure_future(probe.listen())
    loop = asyncio.get_running_loop()
    end = loop.time() + TALK_SECONDS
    try:
        while loop.time() < end:
            await asyncio.sleep(TALK_PAUSE)
            try:
                await probe.send(b"x")
            except Ended:  # a reset: the listener has what came before it
                break
        await listening
        return await probe.judge()
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


@register(
    "speaks-much",
    "greets a client that sends 200 kB",
    Severity.SHOULD,
    why=WHY,
    sources=("RFC 9112 9.6",),
    cause=CAUSE,
    cure=CURE,
    needs=("eof", "junk"),
    seen_in="those of speaks-first, haproxy http-request return, uvicorn, gunicorn",
)
async def speaks_much(service: TestedService) -> Finding:
    """12 clients that send 200 kB while they listen; for HTTP as a body, if GET may have one."""
    first = service.plan.send_much

    async def says_much(probe: Probe) -> Ending:
        await probe.open(request=not first)
        if first:
            await probe.send(first)
        sending = asyncio.ensure_future(probe.send(bytes(MUCH)))
        try:
            await probe.listen()
            # The service may have closed before the first of it arrived.
            await asyncio.wait([sending], timeout=1.0)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        return await probe.judge()

    if first and (await service.client(says_much)).ending is Ending.OTHER:
        first = b""
    return judged(await service.clients(12, says_much), late=service.late)


@register(
    "half-close",
    "greets a client that has closed its sending side",
    Severity.MUST,
    why="`echo QUIT | nc` and some proxies end their side before they read; the other side is still open.",
    sources=("RFC 9293 3.6", "RFC 1122 4.2.2.13"),
    cause="The service takes the end of the client's stream for the end of the connection.",
    cure="After a read of 0 bytes, go on sending; only an error says that the client is gone.",
    seen_in="ncat -c, nginx as a proxy of streams",
)
async def half_close(service: TestedService) -> Finding:
    """20 clients that half-close at once, and 20 that say a line before. Only lost bytes are judged."""

    async def closes(probe: Probe) -> Ending:
        await probe.open()
        probe.half_close()
        return await probe.finish()

    async def says_and_closes(probe: Probe) -> Ending:
        await probe.open()
        await probe.send(service.plan.hello or EIGHTEEN)
        probe.half_close()
        return await probe.finish()

    tally = await service.clients(20, closes)
    if "junk" in service.traits:
        tally = tally.joined(await service.clients(20, says_and_closes))
    # After our own FIN, the kernel's state does not tell a reset from an end.
    return judged(tally, Ending.GREETED, Ending.RESET, late=service.late)

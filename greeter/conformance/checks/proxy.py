"""Checks of a service behind a proxy that sends the address of the client first (PROXY protocol).

Source: "The PROXY protocol, versions 1 & 2", proxy-protocol.txt of the HAProxy distribution, 2020/03/05.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from greeter.conformance.findings import Ending, Finding, Severity, Tally, Verdict, judged
from greeter.conformance.registry import register
from greeter.conformance.tested_service import hears_on
from greeter.core.proxy_protocol import SIGNATURE, encode

if TYPE_CHECKING:
    from greeter.conformance.probe import Probe
    from greeter.conformance.tested_service import Script, TestedService

SPECIFICATION = "PROXY spec"  # the document above
CLIENT, SERVER = ("192.0.2.1", 56324), ("198.51.100.7", 443)
CLIENT6, SERVER6 = ("2001:db8::1", 56324, 0, 0), ("2001:db8::7", 443, 0, 0)
LOCAL = SIGNATURE + b"\x20\x00\x00\x00"  # version 2, the proxy's own connection
UNKNOWN = b"PROXY UNKNOWN\r\n"
GOOD = {
    "v1 TCP4": encode("v1", CLIENT, SERVER),
    "v1 TCP6": encode("v1", CLIENT6, SERVER6),
    "v2 TCP4": encode("v2", CLIENT, SERVER),
    "v2 TCP6": encode("v2", CLIENT6, SERVER6),
    "v2 LOCAL": LOCAL,
}
BAD = {
    "none": b"",
    "another protocol": b"GET / HTTP/1.0\r\n\r\n",
    "a wrong family": b"PROXY TCP5 192.0.2.1 198.51.100.7 56324 443\r\n",
    "a wrong address": b"PROXY TCP4 192.0.2.300 198.51.100.7 56324 443\r\n",
    "a line without an end": b"PROXY TCP4 " + b"1" * 200,
    "a wrong version": SIGNATURE + b"\x31\x11\x00\x0c" + bytes(12),
}
PIECE_PAUSE = 0.002  # seconds


def _begins(header: bytes, *, pieces: bool = False) -> Script:
    """The script of a client whose connection begins with ``header``."""

    async def script(probe: Probe) -> Ending:
        await probe.connect()
        if pieces:
            for byte in header:
                await probe.send_raw(bytes([byte]), "sent 1 B")
                await asyncio.sleep(PIECE_PAUSE)
        elif header:
            await probe.send_raw(header)
        return await hears_on(probe)

    return script


@register(
    "proxy-forms",
    "takes PROXY headers of versions 1 and 2, and of the proxy's own connections",
    Severity.MUST,
    why="A proxy sends LOCAL for its health checks, and either version, as it is set up.",
    sources=(f"{SPECIFICATION} 2",),
    cause="The service knows one version, as the specification allows, or one family only.",
    cure="Parse both versions, or use a library that does; else let the proxy send what the service knows.",
    needs=("proxy",),
)
async def proxy_forms(service: TestedService) -> Finding:
    """One client for each form. UNKNOWN is a figure: a service may refuse it."""
    bare = dataclasses.replace(service.dial, proxy=None)
    tally, refused = Tally(), []
    for name, header in GOOD.items():
        experience = await service.client(_begins(header), dial=bare)
        tally.add(experience)
        if experience.ending is not Ending.GREETED:
            refused.append(name)
    unknown = await service.client(_begins(UNKNOWN), dial=bare)
    finding = judged(tally, Ending.GREETED, Ending.RESET, late=service.late)
    figure = f"not greeted: {', '.join(refused)}" if refused else finding.figure
    return dataclasses.replace(finding, figure=figure, data={"unknown": unknown.ending.value})


@register(
    "proxy-bad",
    "greets no client without a right PROXY header",
    Severity.MUST,
    why="A service that guesses lets every client claim the address of another.",
    sources=(f"{SPECIFICATION} 2", f"{SPECIFICATION} 5"),
    cause="The service takes the header for optional, or goes on after a wrong one.",
    cure="Require the header on that port, and close the connection at the first wrong byte.",
    needs=("proxy",),
)
async def proxy_bad(service: TestedService) -> Finding:
    """One client for each kind of wrong header; that none is greeted is judged, not how it ends."""
    bare = dataclasses.replace(service.dial, proxy=None)
    greeted, story = [], ""
    for name, header in BAD.items():
        experience = await service.client(_begins(header), dial=bare, timeout=1.0)
        if experience.ending in (Ending.GREETED, Ending.RESET):
            greeted.append(name)
            story = story or experience.told()
    if greeted:
        return Finding(Verdict.FAIL, f"greeted: {', '.join(greeted)}", {"greeted": len(greeted)}, story)
    return Finding(Verdict.PASS, f"{len(BAD)} of {len(BAD)} not greeted")


@register(
    "proxy-pieces",
    "takes a PROXY header that arrives byte by byte",
    Severity.SHOULD,
    why="Nothing keeps a header in one segment on its way.",
    sources=(f"{SPECIFICATION} 2",),
    cause="The service expects the whole header from one read, as the specification allows.",
    cure="Read until the header is complete, within a deadline.",
    needs=("proxy",),
    seen_in="nginx, haproxy",
)
async def proxy_pieces(service: TestedService) -> Finding:
    """One client for each version."""
    bare = dataclasses.replace(service.dial, proxy=None)
    tally = Tally()
    for name in ("v1 TCP4", "v2 TCP4"):
        tally.add(await service.client(_begins(GOOD[name], pieces=True), dial=bare))
    return judged(tally, Ending.GREETED, Ending.RESET, late=service.late)


@register(
    "proxy-joined",
    "takes a PROXY header and a ClientHello in one segment",
    Severity.MUST,
    why="A proxy that has the ClientHello already sends it right behind its header.",
    sources=(f"{SPECIFICATION} 2", "cpython #142352"),
    cause="The service reads past the header and loses what it read, or waits for what it has read.",
    cure="Take exactly the header's bytes off the socket before the handshake begins.",
    needs=("proxy", "tls"),
)
async def proxy_joined(service: TestedService) -> Finding:
    """2 clients for each version."""
    tally = Tally()
    for name in ("v1 TCP4", "v2 TCP4"):
        dial = dataclasses.replace(service.dial, proxy=None, joined=GOOD[name])
        for _ in range(2):
            tally.add(await service.client(_begins(b""), dial=dial))
    return judged(tally, Ending.GREETED, Ending.RESET, late=service.late)

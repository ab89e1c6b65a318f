"""Checks of a service over TLS: its handshake, and its end.

The certificate is verified once, by the check that learns the greeting.
"""

from __future__ import annotations

import dataclasses
import ssl
import warnings
from typing import TYPE_CHECKING

from greeter.conformance.checks.holding import connects_only, controls
from greeter.conformance.checks.speaking import CAUSE, CURE, EIGHTEEN, WHY
from greeter.conformance.findings import Ending, Finding, Severity, Tally, Verdict, judged, skipped
from greeter.conformance.registry import register
from greeter.conformance.tested_service import hears

if TYPE_CHECKING:
    from greeter.conformance.probe import Probe
    from greeter.conformance.tested_service import Script, TestedService

NEW = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
OLD = (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1)
# What no client of TLS begins with: a request of HTTP, zeros, and a record of a version that never was.
GARBAGE = (b"GET / HTTP/1.0\r\n\r\n", bytes(64), b"\x16\x09\x09\x00\x05hello")
REFUSED_WITHIN = 5.0  # seconds


@register(
    "tls-end",
    "sends close_notify before it closes",
    Severity.MUST,
    why="Without it, a client cannot tell the end of the greeting from a connection that was cut.",
    sources=("RFC 8446 6.1", "RFC 5246 7.2.1"),
    cause="The service closes the socket without ending the TLS session first.",
    cure="Shut the TLS session down (SSL_shutdown) before the socket is closed.",
    needs=("eof", "tls"),
    seen_in="node over TLS 1.3",
)
async def tls_end(service: TestedService) -> Finding:
    """5 clients for each version that the service speaks."""
    tally, spoken, missing = Tally(), [], {}
    for version in NEW:
        dial = dataclasses.replace(service.dial, tls_version=version)
        ends = [await service.client(hears, dial=dial) for _ in range(5)]
        if all(end.ending is Ending.TLS_ERROR for end in ends):  # it does not speak this version
            continue
        spoken.append(version.name)
        missing[version.name] = sum(end.truncated for end in ends)
        for end in ends:
            # Counted as lost: it was heard, and cannot be trusted.
            tally.add(dataclasses.replace(end, ending=Ending.LOST if end.truncated else end.ending))
    finding = judged(tally, Ending.GREETED, Ending.RESET)
    text = ", ".join(f"{name.replace('_', '.')}: {missing[name]} of 5 without" for name in spoken)
    return dataclasses.replace(finding, figure=text)


@register(
    "tls-speaks-first",
    "greets a client that speaks right after its handshake",
    Severity.MUST,
    why=WHY,
    sources=("RFC 9293 3.6.1", "RFC 8446 6.1"),
    cause=CAUSE,
    cure=CURE,
    needs=("eof", "junk", "tls"),
    seen_in="Go",
)
async def tls_speaks_first(service: TestedService) -> Finding:
    """10 clients that say 18 bytes, and 10 that say 5 kB."""
    tally = Tally()
    for said in (service.plan.hello or EIGHTEEN, bytes(5000)):

        async def speaks(probe: Probe, said: bytes = said) -> Ending:
            await probe.open()
            await probe.send(said)
            return await probe.finish()

        tally = tally.joined(await service.clients(10, speaks))
    return judged(tally, late=service.late)


@register(
    "tls-silent",
    "greets others while 100 clients do not begin their handshake",
    Severity.MUST,
    why="One client that does not begin its handshake would keep all others waiting.",
    sources=("CWE-400",),
    cause="The service does its handshakes one after the other, or in the loop that accepts.",
    cure="Do each handshake concurrently with accepting, with a deadline.",
    heavy=True,
    needs=("tls",),
    seen_in="socat, ncat",
)
async def tls_silent(service: TestedService) -> Finding:
    """3 control clients beside them."""
    async with service.watching_for_lateness(), service.held(100, connects_only):
        tally = await controls(service)
    return judged(tally, Ending.GREETED, Ending.RESET, late=service.late)


@register(
    "tls-garbage",
    "refuses what is not TLS within 5 seconds, without a greeting",
    Severity.MUST,
    why="A service that greets without TLS gives away what TLS was to protect.",
    sources=("RFC 8446 6.2",),
    cause="The service takes plain connections too, or waits for a record that never comes.",
    cure="Close a connection whose handshake fails, after the alert.",
    needs=("tls",),
)
async def tls_garbage(service: TestedService) -> Finding:
    """Three kinds of garbage, and a control client."""
    tally = Tally()
    for garbage in GARBAGE:
        tally.add(await service.client(_says(garbage), timeout=REFUSED_WITHIN))
    greeted = tally.classes[Ending.GREETED]
    waiting = tally.classes[Ending.SILENT] + tally.classes[Ending.INCOMPLETE]
    control = await service.control()
    finding = judged(Tally([control]), Ending.GREETED, Ending.RESET)
    figure = f"{len(GARBAGE) - greeted - waiting} of {len(GARBAGE)} refused"
    if greeted or waiting:
        finding = dataclasses.replace(
            finding, verdict=Verdict.FAIL, story=tally.story(Ending.LOST, Ending.TLS_ERROR, Ending.OTHER)
        )
    return dataclasses.replace(finding, figure=figure + (f", {greeted} greeted" if greeted else ""))


def _says(data: bytes) -> Script:
    async def script(probe: Probe) -> Ending:
        await probe.connect()
        await probe.send_raw(data)
        await probe.listen()
        return probe.said()

    return script


@register(
    "tls-pieces",
    "takes a ClientHello that arrives byte by byte",
    Severity.MUST,
    why="A path with small segments, or a slow client, delivers a handshake in pieces.",
    sources=("RFC 8446 5.1",),
    cause="The service expects the whole record from one read.",
    cure="Read until the record is complete, within the deadline of the handshake.",
    needs=("tls",),
)
async def tls_pieces(service: TestedService) -> Finding:
    """2 clients."""
    dial = dataclasses.replace(service.dial, pieces=True)
    tally = Tally([await service.client(hears, dial=dial) for _ in range(2)])
    return judged(tally, Ending.GREETED, Ending.RESET, late=service.late)


@register(
    "tls-old",
    "refuses TLS 1.0 and 1.1",
    Severity.SHOULD,
    why="They were deprecated: their handshakes are signed with hashes that are broken.",
    sources=("RFC 8996",),
    cause="The service, or the library it was built with, still allows them.",
    cure="Set the minimum version to TLS 1.2.",
    needs=("tls",),
    seen_in="Go 1.19",
)
async def tls_old(service: TestedService) -> Finding:
    """One client for each."""
    taken = []
    for version in OLD:
        dial = dataclasses.replace(service.dial, tls=_old_context(version), server_name=None)
        if (await service.client(_handshakes, dial=dial)).ending is Ending.GREETED:
            taken.append(version.name.replace("_", "."))
    verdict = Verdict.FAIL if taken else Verdict.PASS
    return Finding(verdict, f"takes {' and '.join(taken)}" if taken else "both refused")


async def _handshakes(probe: Probe) -> Ending:
    await probe.connect()
    await probe.handshake()
    return Ending.GREETED


def _old_context(version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")  # without it, OpenSSL does not offer these versions
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    return context


@register(
    "tls-half",
    "greets a client that has sent close_notify",
    Severity.INFO,
    why="Since TLS 1.3, close_notify ends one direction only.",
    sources=("RFC 8446 6.1",),
    cause="The service takes close_notify for the end of the connection.",
    cure="After the client's close_notify, go on sending.",
    needs=("eof", "tls"),
)
async def tls_half(service: TestedService) -> Finding:
    """5 clients of TLS 1.3. It is a figure only: OpenSSL itself closes both directions by default."""

    async def closes(probe: Probe) -> Ending:
        await probe.open()
        await probe.send_close_notify()
        return await probe.finish()

    dial = dataclasses.replace(service.dial, tls_version=ssl.TLSVersion.TLSv1_3)
    tally = await service.clients(5, closes, dial=dial)
    if not tally.all_but(Ending.TLS_ERROR):  # close_notify ends both directions there (RFC 5246 7.2.1)
        return skipped("the service does not speak TLS 1.3")
    finding = judged(tally, Ending.GREETED, Ending.RESET)
    return dataclasses.replace(finding, verdict=Verdict.INFO)

"""Checks of a service that answers datagrams: which clients it answers, how often, from where, and how much.

A datagram has no handshake, so its source address can be forged. What a service sends there is what an
attacker can have it send to others.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import socket
from time import perf_counter
from typing import TYPE_CHECKING

from greeter.conformance.checks.plain_clients import ENOUGH_SECONDS, how_slow
from greeter.conformance.datagram_probe import DatagramProbe
from greeter.conformance.findings import (
    Ending,
    Experience,
    Finding,
    Severity,
    Tally,
    Verdict,
    judged,
    skipped,
)
from greeter.conformance.probe import Ended
from greeter.conformance.registry import register
from greeter.core.datagram_rules import FIRST_CLIENT_PORT
from greeter.core.datagram_sizes import AMPLIFICATION_BOUND, DATAGRAM_MAX
from greeter.core.escapes import escape

if TYPE_CHECKING:
    from greeter.conformance.datagram_service import DatagramService

# What fits in one packet on every path: the least MTU of IPv6 (RFC 8200 5) without the headers of IP and UDP.
UNFRAGMENTED = 1232
# How long a reply that should not come is waited for, in seconds.
SURPLUS_SECONDS = 0.3
# How many datagrams one client sends.
ONE_CLIENT = 100
# Another address of this machine: who serves all addresses, serves it too.
OTHER_LOOPBACK = "127.0.0.2"


@register(
    "udp-greets",
    "answers 10 datagrams, one after the other, each within the deadline",
    Severity.MUST,
    why="It is what every other check builds on.",
    sources=("its own word",),
    cause="The service does not answer, or not within the deadline.",
    cure="Name what a client says with --send, if the service waits for a request.",
    seconds=60.0,
    datagrams=True,
)
async def udp_greets(service: DatagramService) -> Finding:
    """Learns the size of the reply."""
    tally, begin = Tally(), perf_counter()
    said: list[bytes] = []
    times: list[float] = []
    for number in range(10):
        if number and not said:
            break  # it is not there, or says something else
        async with DatagramProbe(service.dial) as probe:
            experience = await service.asked(probe, service.request, service.plan.timeout)
        tally.add(experience)
        if experience.ending is Ending.GREETED:
            said.append(experience.data)
            times.append(experience.story[-1][0])
        if perf_counter() - begin > ENOUGH_SECONDS:
            break
    if not said:
        why = _why_not(service, experience, probe.elsewhere)
        return dataclasses.replace(judged(tally), figure=why)
    service.greeting = said[0]
    return how_slow(judged(tally), tally.total, said, times)


def _why_not(service: DatagramService, experience: Experience, elsewhere: str) -> str:
    """Returns why a client had no reply, and what may help, in one line."""
    plan, last = service.plan, experience.story[-1][1] if experience.story else ""
    heard = escape(experience.data[:60])
    match experience.ending:
        case Ending.REFUSED:
            return os.strerror(getattr(errno, last, errno.ECONNREFUSED)).lower()
        case Ending.SILENT if elsewhere:
            return f"no reply within {plan.timeout:g} s but one from {elsewhere}, which clients do not take"
        case Ending.SILENT:
            return f"no reply within {plan.timeout:g} s; if it waits for a request, name that with --send"
        case Ending.LOST:
            return "an empty reply; it may want a request (--send)"
        case Ending.OTHER:
            return f"it said '{heard}', without '{escape(plan.expect)}'"
    return "this machine has no descriptor, port or memory left for a client"


@register(
    "udp-empty",
    "answers an empty datagram",
    Severity.SHOULD,
    why="A datagram without data is valid, and is what some clients send that have nothing to ask.",
    sources=("RFC 768", "RFC 865"),
    cause="The service takes a read of 0 bytes for an end, as it is on a stream.",
    cure="Answer every datagram, whatever its length.",
    needs=("unasked", "private"),
    datagrams=True,
)
async def udp_empty(service: DatagramService) -> Finding:
    """5 clients, one after the other."""
    return judged(await service.one_by_one(5, b""), late=service.late)


@register(
    "udp-full",
    "answers a datagram of full size",
    Severity.SHOULD,
    why="What a client pads, so as not to be taken for part of an amplification, may be of any size.",
    sources=("RFC 768", "RFC 865"),
    cause="The service drops what does not fit its buffer, or fails at it.",
    cure="Receive with a buffer of 65,535 bytes, or answer a datagram that was truncated all the same.",
    needs=("unasked",),
    datagrams=True,
)
async def udp_full(service: DatagramService) -> Finding:
    """5 clients send 65,507 bytes, one after the other; to another machine 1,232, which fit any packet."""
    size = DATAGRAM_MAX if service.local else UNFRAGMENTED
    return judged(await service.one_by_one(5, bytes(size)), late=service.late)


@register(
    "udp-once",
    "answers each datagram exactly once",
    Severity.MUST,
    why="A client that asks again takes a reply that is left over for the answer to its next question.",
    sources=("RFC 865", "RFC 8085 3.3"),
    cause="The service repeats its replies, or sends one in several datagrams.",
    cure="Send one datagram for each that was received, and leave repeating to the client.",
    seconds=20.0,
    datagrams=True,
    seen_in="socat UDP-RECVFROM",
)
async def udp_once(service: DatagramService) -> Finding:
    """100 datagrams from one client, each after the reply to the one before, for 5 seconds at the most."""
    tally, begin = Tally(), perf_counter()
    async with DatagramProbe(service.dial) as probe:
        while tally.total < ONE_CLIENT and perf_counter() - begin < ENOUGH_SECONDS:
            tally.add(await service.asked(probe, service.request, service.plan.timeout))
            if tally.all_but(Ending.GREETED):
                break
        await asyncio.sleep(SURPLUS_SECONDS)
        surplus = probe.more()
        story = probe.experience(Ending.GREETED).told()
    finding = judged(tally)
    if surplus and finding.verdict is Verdict.PASS:
        figure = f"{tally.total + surplus} replies to {tally.total} datagrams"
        return dataclasses.replace(finding, verdict=Verdict.FAIL, figure=figure, story=story)
    if finding.verdict is Verdict.FAIL and not service.local:  # it may have been lost on its way
        return dataclasses.replace(finding, verdict=Verdict.UNSURE)
    return finding


@register(
    "udp-source",
    "answers from the address that was asked",
    Severity.MUST,
    why="Clients, and the firewalls before them, drop a reply from another address than they asked.",
    sources=("RFC 1122 4.1.3.5", "ip(7)"),
    cause="The socket is bound to all addresses, and the kernel chooses the source of a reply by its route.",
    cure="Take the address from IP_PKTINFO and send the reply from it, or bind a socket to each address.",
    datagrams=True,
    seen_in="asyncio, xinetd and socat on all addresses",
)
async def udp_source(service: DatagramService) -> Finding:
    """A client at the target, and one at 127.0.0.2 if the service is there too."""
    assert isinstance(service.dial.address, tuple)
    host, port = service.dial.address[:2]
    tally = Tally()
    asked = [service.dial.address]
    if service.dial.family == socket.AF_INET and host.startswith("127."):
        asked.append((OTHER_LOOPBACK, port))
    elsewhere = ""
    for address in asked:
        async with DatagramProbe(service.dial, address=address) as probe:
            experience = await service.asked(probe, service.request, min(2.0, service.plan.timeout))
        there = experience.ending is Ending.GREETED or probe.elsewhere
        if address is not service.dial.address and not there:
            continue
        elsewhere = elsewhere or (f"asked {address[0]}, replied {probe.elsewhere}" if probe.elsewhere else "")
        tally.add(experience)
    finding = judged(tally, late=service.late and not elsewhere)
    return dataclasses.replace(finding, figure=elsewhere) if elsewhere else finding


@register(
    "udp-ports",
    "does not answer the ports of services, nor its own",
    Severity.SHOULD,
    why="One forged datagram sets two services on each other for ever, if each answers the other's answers.",
    sources=("CVE-2024-2169", "RFC 6335 6"),
    cause="The service answers whatever source port a datagram claims.",
    cure=f"Drop datagrams from ports below {FIRST_CLIENT_PORT}, and from the port of the service itself.",
    needs=("unasked",),
    datagrams=True,
    seen_in="nginx stream return, asyncio, xinetd, socat",
)
async def udp_ports(service: DatagramService) -> Finding:
    """A datagram from a port below 1024, and one from its own, each followed by a control client."""
    assert isinstance(service.dial.address, tuple)
    host, port = service.dial.address[:2]
    source = OTHER_LOOPBACK if service.local and service.dial.family == socket.AF_INET else ""
    tried, answered, story = [], [], ""
    for name, ports in (("a low port", range(1023, 1013, -1)), ("its own", (port,))):
        probe = _bound(service, source, ports)
        if probe is None:
            continue
        async with probe:
            tried.append(name)
            experience = await _reply_to(service, probe, service.request)
        if experience.ending in (Ending.GREETED, Ending.OTHER, Ending.LOST):
            answered.append(name)
            story = story or experience.told()
    if not tried:
        return skipped("this user may not send from such a port")
    if answered:
        return Finding(Verdict.FAIL, f"answers {' and '.join(answered)}", {"greeted": len(answered)}, story)
    return Finding(Verdict.PASS, f"no reply to {' and '.join(tried)}")


def _bound(service: DatagramService, host: str, ports: tuple[int, ...] | range) -> DatagramProbe | None:
    """Returns a client at one of some ports; None if none can be had."""
    for port in ports:
        try:
            return DatagramProbe(service.dial, source=(host, port))
        except OSError:
            continue
    return None


async def _reply_to(service: DatagramService, probe: DatagramProbe, said: bytes) -> Experience:
    """Send what should have no reply, and wait for one until another client has had its own."""
    try:
        probe.send(said)
        await service.control()
        return probe.experience(await probe.reply(SURPLUS_SECONDS))
    except Ended as ended:
        return probe.experience(ended.ending)


@register(
    "udp-amplifies",
    "answers another network with at most three times what it was sent",
    Severity.SHOULD,
    why="A forged source address makes the service send its replies to a victim, multiplied.",
    sources=("RFC 9000 8.1", "US-CERT TA14-017A"),
    cause="The reply is longer than a datagram that asks for it.",
    cure="Drop a datagram of less than a third of the reply, unless it comes from a private network.",
    needs=("public",),
    datagrams=True,
)
async def udp_amplifies(service: DatagramService) -> Finding:
    """A datagram of one byte, or of what --send says."""
    said = service.plan.send or b"?"
    async with DatagramProbe(service.dial) as probe:
        experience = await _reply_to(service, probe, said)
    size, bound = len(experience.data), AMPLIFICATION_BOUND * len(said)
    figure = f"{size} B for {len(said)} B" if size else f"no reply to {len(said)} B"
    if size > bound:
        return Finding(Verdict.FAIL, figure, {"greeted": 1}, experience.told())
    return Finding(Verdict.PASS, figure)

"""Scenes of a datagram service in a network namespace of its own: ``python -m ... SCENE LOOP``, as root.

The namespace is made by unshare(1), and ends with the process. A scene prints what it has found as JSON.
Addresses of other hosts are forged with a raw socket: the packets come in over the loopback.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import shutil
import socket
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

import greeter
from greeter.core.admission import MAX_BUCKETS
from tests.conftest import PATIENCE, ROOT, loop_factories
from tests.support.datagram_peers import ask, client, queued
from tests.support.peers import until

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

GREETING = b"x" * 510
UNSHARE = ("unshare", "--net")


def require_namespaces() -> None:
    """Skip the test that calls where the scenes cannot be played."""
    if any(shutil.which(program) is None for program in ("unshare", "ip", "tc")):
        pytest.skip("needs unshare(1), ip(8) and tc(8)")
    if subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the permission to make a network namespace (root)")


async def play(scene: str, loop: str) -> dict[str, Any]:
    """Play a scene in a namespace, on that loop."""
    command = [*UNSHARE, sys.executable, "-m", __name__, scene, loop]
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=pipe, stderr=pipe)
    async with asyncio.timeout(PATIENCE):
        out, errors = await child.communicate()
    assert child.returncode == 0, errors.decode()
    found: dict[str, Any] = json.loads(out)
    return found


def run(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True)


RAW: socket.socket  # of the scene


def forge(source: tuple[str, int], target: tuple[str, int], data: bytes) -> None:
    """Send a datagram with any source address (ip(7), IP_HDRINCL)."""
    udp = struct.pack("!HHHH", source[1], target[1], 8 + len(data), 0) + data
    addresses = socket.inet_aton(source[0]) + socket.inet_aton(target[0])
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0) + addresses
    RAW.sendto(header + udp, target)


async def public() -> dict[str, Any]:
    """Who is answered how much: by the source, the size of the answer to a small and to a padded datagram."""
    hosts = ("127.0.0.1", "10.1.2.3", "8.8.8.8", "203.0.113.5", "fd00::1", "2001:db8::5", "::1")
    for host in set(hosts) - {"127.0.0.1", "::1"}:
        run(f"ip addr add {host}/{128 if ':' in host else 32} dev lo" + " nodad" * (":" in host))
    limits = greeter.Limits(allow=["0.0.0.0/0", "::/0"])
    found: dict[str, Any] = {}
    async with greeter.serve(GREETING, listen=["udp::0"], limits=limits, access_log=False) as server:
        for host in hosts:
            target = ("::1" if ":" in host else "127.0.0.1", server.port)
            with client(target, host) as sock:
                sock.send(b"y" * 169)
                await ask(target, source=target[0])  # so the one before has been seen to
                small = queued(sock)
            found[host] = [small, len(await ask(target, b"y" * 170, host))]
        found["rejected"] = server.stats.datagrams["rejected_amplification"]
    return found


async def forged() -> dict[str, Any]:
    """Sources that no client has, and one that no route leads to."""
    run("ip addr add 10.9.0.1/24 dev lo")
    async with greeter.serve("Hello", listen=["udp:0.0.0.0:0"], access_log=False) as server:
        target = ("10.9.0.1", server.port)
        for source in (
            *(("10.9.0.2", 0), ("10.9.0.2", 53), ("10.9.0.2", server.port)),
            *(("255.255.255.255", 4000), ("224.0.0.1", 4000)),
            *(("10.9.0.255", 4000), ("10.200.0.1", 4000)),  # a broadcast address of a network; no route
        ):
            forge(source, target, b"x")
        answer = (await ask(target)).decode()
        return {"answer": answer, **{name: n for name, n in server.stats.datagrams.items() if n}}


class Lines(logging.Handler):
    """The log lines of the service."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        logging.getLogger("greeter").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def resident() -> int:
    """The memory of this process in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


async def many(count: int = 5000) -> dict[str, Any]:
    """A flood of datagrams, each from another address. No route leads back."""
    run("ip addr add 10.9.0.1/24 dev lo")
    lines, limits = Lines(), greeter.Limits(rate_per_ip=1)
    async with greeter.serve("Hello", listen=["udp:0.0.0.0:0"], limits=limits, access_log=False) as server:
        target = ("10.9.0.1", server.port)
        before, start = resident(), time.monotonic()
        for number in range(count):
            forge((socket.inet_ntoa(struct.pack("!I", 0x01000001 + 7919 * number)), 4000), target, b"x" * 50)
            if number % 50 == 0:
                await asyncio.sleep(0)
        answer = (await ask(target)).decode()
        admission, seconds = server._tracker.admission, time.monotonic() - start
        assert admission is not None
        return {
            "answer": answer,
            "received": server.stats.datagrams["received"] + server.stats.datagrams_dropped,
            "bounded": admission.buckets <= MAX_BUCKETS and admission.addresses == 0,
            "memory": resident() - before,
            # Ten of each reason in a second.
            "quiet": len(lines.texts) <= 12 * (seconds + 1),
        }


async def flood() -> dict[str, Any]:
    """The same from more addresses than any table has room for."""
    return await many(100_000)


async def mapped() -> dict[str, Any]:
    """A socket of both families sees a public IPv4 address as IPv6: how often it is answered there."""
    run("ip addr add 8.8.8.8/32 dev lo")
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", 0))
    limits = greeter.Limits(deny=["10.0.0.0/8"])
    run("ip addr add 10.1.2.3/32 dev lo")
    async with greeter.serve(GREETING, sock=sock, limits=limits, access_log=False) as server:
        target = ("127.0.0.1", server.port)
        with client(target, "8.8.8.8") as public, client(target, "10.1.2.3") as denied:
            public.send(b"y" * 169)
            denied.send(b"y" * 170)
            await ask(target)  # so those before have been seen to
            found = {"small": queued(public), "denied": queued(denied)}
            padded = len(await ask(target, b"y" * 170, "8.8.8.8"))
        rejected = {name: count for name, count in server.stats.datagram_rejections.items() if count}
        return {**found, "padded": padded, "rejected": rejected}


async def down() -> dict[str, Any]:
    """The network goes away, with an address, while greetings are made, and comes back."""
    lines, there = Lines(), asyncio.Event()

    async def greeting(_: greeter.Peer) -> str:
        await there.wait()
        return "Hello"

    run("ip addr add 10.9.0.1/24 dev lo")
    endpoints = ["udp:10.9.0.1:0", "udp:0.0.0.0:0"]
    async with greeter.serve(greeting, listen=endpoints, access_log=False) as server:
        targets = [("10.9.0.1", sock.getsockname()[1]) for sock in server.sockets]
        with client(targets[0]) as one, client(targets[1]) as two:
            for sock in (one, two):
                sock.send(b"x")
            await until(lambda: server.stats.datagrams["received"] == 2, "both are received")
            run("ip addr del 10.9.0.1/24 dev lo", "ip link set lo down")
            there.set()
            await until(lambda: server.stats.datagrams["failed_unsent"] == 2, "neither can be sent")
        unsent = [text.partition(": ")[2] for text in lines.texts]
        run("ip link set lo up", "ip addr add 10.9.0.1/24 dev lo")
        return {"unsent": unsent, "answers": [(await ask(target)).decode() for target in targets]}


async def full() -> dict[str, Any]:
    """The send buffer is full, because the network is slow, until it is fast again."""
    options: dict[str, Any] = {"access_log": False, "greet_timeout": 0.2}
    async with greeter.serve(GREETING, listen=["udp:127.0.0.1:0"], **options) as server:
        server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the kernel's least
        with client(("127.0.0.1", server.port)) as sock:
            for _ in range(50):
                sock.send(b"x")
            run("tc qdisc add dev lo root tbf rate 8kbit burst 1600 limit 10000000")
            await until(lambda: server.stats.datagrams["failed_greet_timeout"] > 0, "the deadline")
            stuck = dict(server.stats.datagrams)
            run("tc qdisc del dev lo root")
            answer = len(await ask(("127.0.0.1", server.port)))
        ended = server.stats.datagrams
        ends = ended["greeted"] + ended["failed_greet_timeout"]
        return {"paused": stuck["received"] < 50, "answer": answer, "lost": ended["received"] - ends}


async def checked() -> dict[str, Any]:
    """A check from a public address, of a service that is no amplifier and of one that is."""
    run("ip addr add 8.8.8.8/32 dev lo")
    names = ("udp-amplifies", "udp-empty")
    found: dict[str, Any] = {}

    class Amplifier(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            self.transport.sendto(GREETING, addr)  # type: ignore[attr-defined]  # a DatagramTransport

    limits = greeter.Limits(allow=["0.0.0.0/0"])
    async with greeter.serve(GREETING, listen=["udp:8.8.8.8:0"], limits=limits, access_log=False) as server:
        report = await greeter.check(server.addresses[0], only=names)
        found["greeter"] = {each.check.id: each.finding.verdict.value for each in report.results}
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        Amplifier, local_addr=("8.8.8.8", 0)
    )
    report = await greeter.check(f"udp:8.8.8.8:{transport.get_extra_info('sockname')[1]}", only=names)
    transport.close()
    found["amplifier"] = {each.check.id: each.finding.figure for each in report.results}
    return found


SCENES: dict[str, Callable[[], Coroutine[Any, Any, dict[str, Any]]]] = {
    "public": public,
    "forged": forged,
    "many": many,
    "flood": flood,
    "mapped": mapped,
    "down": down,
    "full": full,
    "checked": checked,
}

if __name__ == "__main__":
    run("ip link set lo up")
    RAW = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with RAW, asyncio.Runner(loop_factory=loop_factories()[sys.argv[2]]) as runner:
        print(json.dumps(runner.run(SCENES[sys.argv[1]]())))

"""discover() on real networks: namespaces on a bridge, one without a network, and this machine's."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

from greeter import ConfigError, DiscoveredService, Endpoint, discover
from greeter.client import discovery
from greeter.system.broadcasts import broadcast_interfaces
from tests.conftest import PATIENCE, ROOT, loop_factories, one_loop, run_greeter
from tests.support.namespaces import hosts
from tests.support.peers import until

if TYPE_CHECKING:
    from collections.abc import Callable

once = one_loop  # does not depend on the loop

# A service that replies twice to each datagram, and sends a third one from another port before.
STUTTER = """
import socket, sys
sock = socket.socket(type=socket.SOCK_DGRAM)
sock.bind(("", 9999))
print("ready", file=sys.stderr, flush=True)
while True:
    size, source = (lambda data, source: (len(data), source))(*sock.recvfrom(65536))
    socket.socket(type=socket.SOCK_DGRAM).sendto(b"from another port", source)
    for _ in range(2):
        sock.sendto(b"asked with %d bytes" % size, source)
"""
# discover() on the loop in argv[1], until it has found two services.
LIBRARY = """
import asyncio, sys, greeter
from contextlib import aclosing

async def main():
    count = 0
    async with aclosing(greeter.discover(9999, timeout=60)) as services:
        async for found in services:
            reply = await greeter.greet(found.target)
            print(found.address, found.greeting, reply.text == found.greeting, 0 < found.round_trip < 60)
            count += 1
            if count == 2:
                break

factory = None
if sys.argv[1] == "uvloop":
    from uvloop import new_event_loop as factory
with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(main())
"""


@once
@pytest.mark.one_interpreter
@pytest.mark.thorough
async def test_services_on_a_network_are_found_once_each() -> None:
    serve = ("-m", "greeter", "serve", "--listen", "udp::9999", "--greeting")
    with hosts(3) as (one, two, three):
        async with (
            one.running(*serve, "Hello from one", ready="Listening on udp:"),
            two.running("-c", STUTTER, ready="ready"),
        ):
            code, out, err = await three.run("-m", "greeter", "discover", "--json", "--timeout", "3")
            assert (code, err) == (0, "")
            found = {service["address"]: service for service in json.loads(out)}
            assert len(json.loads(out)) == 2
            assert found["10.77.0.1:9999"]["greeting"] == "Hello from one"
            assert found["10.77.0.2:9999"]["greeting"] == "asked with 171 bytes"
            assert all(0 < service["round_trip_us"] < 60e6 for service in found.values())
            # The second host has no broadcast address, and can broadcast nevertheless.
            code, out, err = await two.run("-m", "greeter", "discover", "--timeout", "3")
            assert (code, err) == (0, "")
            assert "10.77.0.1:9999: Hello from one\n" in out
            for loop in loop_factories():
                code, out, err = await three.run("-c", LIBRARY, loop)
                assert (code, err) == (0, "")
                assert sorted(out.splitlines()) == [
                    "10.77.0.1:9999 Hello from one True True",
                    "10.77.0.2:9999 asked with 171 bytes True True",
                ]
            line = "greeter: no service replied on port 17 within 0.1 s\n"
            assert await three.run("-m", "greeter", "discover", "17", "--timeout", "0.1") == (1, "", line)


@once
@pytest.mark.one_interpreter
@pytest.mark.thorough
async def test_a_wildcard_service_on_a_network_answers_from_the_address_that_was_asked() -> None:
    with hosts(2) as (one, two):
        for address in ("10.77.0.101/24", "fd00::1/64", "2001:db8::1/64"):
            one.add_address(address)
        two.add_address("fd00::2/64")
        two.add_address("2001:db8::2/64")
        link_local = one.link_local()
        for loop in loop_factories():
            serve = (
                "-m",
                "greeter",
                "serve",
                "--loop",
                loop,
                "--listen",
                "udp::9999",
                "--greeting",
                "x" * 510,
            )
            async with one.running(*serve, ready="Listening on udp:0.0.0.0"):
                # A reply from another address would not be taken. 2001:db8::2 is public, and pads.
                addresses = ("10.77.0.1", "10.77.0.101", "[fd00::1]", "[2001:db8::1]", f"[{link_local}%eth0]")
                for address in addresses:
                    greet = ("-m", "greeter", "greet", f"udp:{address}:9999", "--timeout", "20")
                    assert await two.run(*greet) == (0, "x" * 510 + "\n", ""), address
                small = ("--send", "y" * 169, "--timeout", "0.1")
                code, out, err = await two.run("-m", "greeter", "greet", "udp:[2001:db8::1]:9999", *small)
                assert (code, out) == (1, "")
                assert "no reply to 1 datagram within 0.1 s" in err


@pytest.mark.one_interpreter
def test_a_machine_without_a_network_is_an_error_of_one_line() -> None:
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare(1)")
    command = ["unshare", "-rn", sys.executable, "-m", "greeter", "discover", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if "unshare" in done.stderr:
        pytest.skip("needs the permission to make a network namespace")
    line = "greeter: cannot connect to udp:255.255.255.255:9999: network is unreachable\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, tuple[str, ...]], None]:
    """Let discover() ask addresses of this machine instead of its networks."""

    def ask(port: int, addresses: tuple[str, ...]) -> None:
        def send(sock: socket.socket, data: bytes, number: int) -> None:
            assert number == port
            for address in addresses:
                sock.sendto(data, (address, port))

        monkeypatch.setattr(discovery, "broadcast", send)

    return ask


class Echo(asyncio.DatagramProtocol):
    """Answers each datagram with ``b"Hello\\xff"``."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, _: bytes, source: Any) -> None:
        self.transport.sendto(b"Hello\xff", source)


@pytest.mark.usefixtures("no_fd_leak")
async def test_a_caller_that_is_slow_or_leaves_early(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, port, transports = asyncio.get_running_loop(), 0, []
    for number in (1, 2, 3):
        transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=(f"127.0.0.{number}", port))
        port = transport.get_extra_info("sockname")[1]
        transports.append(transport)
    asked(port, ("127.0.0.1", "127.0.0.2", "127.0.0.2", "127.0.0.3"))
    found: list[DiscoveredService] = []
    now, read = 100.0, 0

    def clock() -> float:
        nonlocal read
        read += 1
        return now

    monkeypatch.setattr(discovery, "perf_counter", clock)
    async with aclosing(discover(port, timeout=PATIENCE)) as services, asyncio.timeout(PATIENCE / 2):
        async for service in services:
            found.append(service)
            await until(lambda: read == 4, "the question and the three replies have their time")
            now += 60.0  # the round trips do not include it
            if len(found) == 3:
                break
    assert [service.address for service in found] == [f"127.0.0.{n}:{port}" for n in (1, 2, 3)]
    assert [service.round_trip for service in found] == [0.0] * 3
    assert (found[0].greeting, found[0].data) == ("Hello\\xff", b"Hello\xff")
    assert found[0].target == Endpoint.udp("127.0.0.1", port)
    assert str(found[0]) == f"127.0.0.1:{port}: Hello\\xff"
    # What is collected has a bound.
    monkeypatch.setattr(discovery, "_MAX_SERVICES", 2)
    assert len([service async for service in discover(port, timeout=0.2)]) == 2
    for transport in transports:
        transport.close()


@once
@pytest.mark.parametrize(
    ("port", "timeout", "what"),
    [
        (0, 1.0, "no service can have port 0"),
        (65536, 1.0, "endpoint 'udp:255.255.255.255:65536' has port 65536, which is not in 0-65535"),
        (9999, 0.0, "timeout must be a positive number of seconds, not 0.0"),
    ],
)
async def test_an_argument_that_is_wrong(port: int, timeout: float, what: str) -> None:
    with pytest.raises(ConfigError, match=f"^{what}$"):
        await anext(discover(port, timeout=timeout))


@once
async def test_wrong_ports_of_the_command() -> None:
    for text, what in (
        ("0", "no service can have port 0"),
        ("nosuch", "this machine knows no service 'nosuch'"),
    ):
        code, out, err = await run_greeter("discover", text)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert what in err


def test_only_interfaces_that_can_broadcast_are_asked() -> None:
    names = dict(socket.if_nameindex())
    assert "lo" in names.values()
    assert "lo" not in [names[index] for index in broadcast_interfaces()]

"""Faults around a service: handshakes that fail, workers that cannot be started, a manager that is away.

The rest of the matrix of tests/test_faults.py, whose services and rules these are: all other clients are
greeted, descriptors return to the baseline, the log is short, and in the end the counters add up. The faults
themselves are real: clients that misbehave, a fork(2) that fails, a socket that is not read any more.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from greeter.system.tls import client_context
from tests.service.test_faults import PATIENCE, STAGES, WHOLE, Fault, Service, Stage, play, read_to_end, until
from tests.support.peers import reset

if TYPE_CHECKING:
    from collections.abc import Callable

# What a client has for all of its greeting, in seconds.
GREET_TIMEOUT = 1.0


# -- handshake -------------------------------------------------------------------------------------------


class Sealed(Service):
    """A service with TLS."""

    def __init__(self, stage: Stage, shim: Path, directory: Path) -> None:
        authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
        authority.cert_pem.write_to_path(directory / "ca.pem")
        both = directory / "both.pem"
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(both)
        self.context = client_context(directory / "ca.pem")
        self.victims = 0
        super().__init__(
            stage, shim, directory, "--tls-cert", str(both), "--greet-timeout", str(GREET_TIMEOUT)
        )

    def knock(self, clients: int) -> list[socket.socket]:
        """So many clients at once; what they say first, they say inside of TLS."""
        self.knocks += clients
        return [socket.create_connection(("127.0.0.1", self.port), PATIENCE) for _ in range(clients)]

    def heard_by(self, clients: list[socket.socket]) -> int:
        heard = 0
        for number, sock in enumerate(clients):
            client = self.context.wrap_socket(sock, server_hostname="127.0.0.1", suppress_ragged_eofs=False)
            if number % 2:
                client.sendall(b"Hello, is there anybody in there?")
            heard += read_to_end(client) == WHOLE
        return heard

    def check(self, failed: int) -> None:
        assert failed == self.victims

    def hello(self) -> bytes:
        """A ClientHello."""
        outgoing = ssl.MemoryBIO()
        tls = self.context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1")
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        return outgoing.read()


def amid_others(
    service: Sealed, beginnings: list[bytes], fate: Callable[[list[socket.socket]], None], line: str
) -> None:
    """Clients that begin a handshake in a wrong way, one for each of ``beginnings``, amid twelve others.

    ``fate`` is what becomes of them then; the server says ``line`` about each.
    """
    since = time.monotonic()
    assert service.heard_by(service.knock(2)) == 2
    early = service.knock(6)
    victims = service.knock(len(beginnings))
    service.victims += len(victims)
    for victim, beginning in zip(victims, beginnings, strict=True):
        victim.sendall(beginning)
    heard = service.heard_by(early + service.knock(6))
    assert heard == 12, f"{heard} of 12 clients heard it all"
    fate(victims)
    assert service.heard_by(service.knock(2)) == 2
    said = service.settle(since, 16 + len(victims), line)
    assert len(said) == len(victims), f"{len(said)} lines about {len(victims)} handshakes: {said}"


def is_reset(service: Sealed, _: Fault) -> None:
    """Before the first byte, within the ClientHello, and when the server has answered."""

    def fate(victims: list[socket.socket]) -> None:
        assert victims[-1].recv(5)[:2] == b"\x16\x03", "the handshake is under way"
        for victim in victims:
            reset(victim)

    hello = service.hello()
    amid_others(service, [b"", hello[:50], hello], fate, r"no TLS handshake \([a-z ]+\)$")


def is_garbage(service: Sealed, _: Fault) -> None:
    """From the first byte on, within the ClientHello, behind it, and more of it than anybody would read."""

    def fate(victims: list[socket.socket]) -> None:
        for victim in victims:
            heard = read_to_end(victim)
            assert WHOLE not in heard
            assert b"timed out" not in heard, "it is closed"

    hello = service.hello()
    beginnings = [
        b"GET / HTTP/1.1\r\n\r\n",
        hello[:50] + b"\xff" * len(hello[50:]),
        hello + b"\x17\x03\x03\x00\x04junk",
        b"\x15\x03\x01\xff\xff" + bytes(60_000),
    ]
    amid_others(service, beginnings, fate, r"no TLS handshake \([a-z ]+\)$")


def stalls(service: Sealed, _: Fault) -> None:
    """Silence from the beginning, within the ClientHello and behind it ends at the greet deadline."""
    begun = time.monotonic()

    def fate(victims: list[socket.socket]) -> None:
        for victim in victims:
            heard = read_to_end(victim)
            assert WHOLE not in heard
            assert b"timed out" not in heard, "it is closed"
        assert time.monotonic() - begun >= GREET_TIMEOUT, "they had their time"

    hello = service.hello()
    amid_others(
        service, [b"", hello[:50], hello], fate, rf"^warning: .*: not greeted within {GREET_TIMEOUT:g} s$"
    )


# -- spawn -----------------------------------------------------------------------------------------------


class Staffed(Service):
    """A service with two workers."""

    def __init__(self, stage: Stage, shim: Path, directory: Path) -> None:
        super().__init__(stage, shim, directory, "--workers", "2", "--metrics", "127.0.0.1:0")

    def check(self, failed: int) -> None:
        assert failed == 0

    def workers(self) -> list[int]:
        pid = self.process.pid
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    def greeted(self) -> int:
        """By all workers, those that are gone too, as far as the parent has heard."""
        found = re.search(r"Metrics on (\S+)", self._log.read_text())
        assert found
        with urllib.request.urlopen(f"http://{found[1]}/metrics", timeout=PATIENCE) as answer:
            metrics = answer.read().decode()
        (line,) = re.findall(r"^greeter_greeted_total (\S+)$", metrics, re.MULTILINE)
        return int(float(line))


def cannot_start(service: Staffed, fault: Fault) -> None:
    """A worker dies, and twice there is no process to be had for the one in its place."""
    since = time.monotonic()
    assert service.greeted() == service.knocks  # what it has counted must not die with it
    before = service.workers()
    service.plan.arm("spawn", fault.error, 2)
    os.kill(before[0], signal.SIGKILL)
    clients = 0

    def replaced() -> bool:
        nonlocal clients
        clients += 2
        assert service.heard_by(service.knock(2)) == 2
        return len(set(service.workers()) - {before[0]}) == 2

    until(replaced, "there are two workers again")
    assert service.plan.delivered("spawn") == 2
    assert service.heard_by(service.knock(12)) == 12
    said = service.settle(since, clients + 12, r"^error: ")
    assert [line.split(":")[1].split("(")[0].strip() for line in said] == [
        f"worker {before[0]} was killed by SIGKILL",
        "cannot start a worker",
        "cannot start a worker",
    ], said
    assert [line.rpartition(" in ")[2] for line in said] == ["0.1 s", "0.2 s", "0.4 s"]
    until(lambda: service.greeted() == service.knocks, lambda: f"{service.greeted()} of {service.knocks}")


# -- notify ----------------------------------------------------------------------------------------------


class Manager:
    """The end of systemd at which a service reports."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sock: socket.socket
        self.come()

    def come(self) -> None:
        self.path.unlink(missing_ok=True)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(self.path))
        self._sock.settimeout(PATIENCE)

    def go(self, *, leave_file: bool = True) -> None:
        self._sock.close()
        if not leave_file:
            self.path.unlink()

    def hears(self) -> list[str]:
        return self._sock.recv(4096).decode().split("\n")


class Managed(Service):
    """A service that tells somebody how it is."""

    def __init__(self, stage: Stage, shim: Path, directory: Path) -> None:
        self.manager = Manager(directory / "notify")
        self._reloads = 0
        super().__init__(stage, shim, directory, NOTIFY_SOCKET=str(self.manager.path))
        assert self.manager.hears()[0] == "READY=1"

    def reload(self) -> None:
        self._reloads += 1
        self.process.send_signal(signal.SIGHUP)
        until(lambda: self._log.read_text().splitlines().count("Reloaded") == self._reloads, "it reloads")

    def stop(self) -> None:
        super().stop()
        assert self.manager.hears() == ["STOPPING=1"]

    def check(self, failed: int) -> None:
        assert failed == 0

    def close(self) -> None:
        super().close()
        self.manager.go()


def is_away(service: Managed, fault: Fault) -> None:
    """Its messages are not read during two reloads; when they are read again, they arrive."""
    manager = service.manager
    since = time.monotonic()
    manager.go(leave_file=fault.error == "ECONNREFUSED")
    clients = []
    for _ in range(2):
        clients += service.knock(6)
        service.reload()
    assert service.heard_by(clients) == 12
    manager.come()
    service.reload()
    assert manager.hears()[0] == "RELOADING=1"
    assert manager.hears() == ["READY=1", f"STATUS=serving on 127.0.0.1:{service.port}"]
    assert service.heard_by(service.knock(2)) == 2
    said = service.settle(since, 14, "Reloaded|cannot notify")
    why = {"ENOENT": "no such file or directory", "ECONNREFUSED": "connection refused"}[fault.error]
    once = f"warning: cannot notify systemd at '{manager.path}': {why}"
    assert said == [once, "Reloaded", "Reloaded", "Reloaded"]


# -- the matrix ------------------------------------------------------------------------------------------

# TLS faults are played on the streams path only, and spawn faults on the direct path only: how workers are
# started does not depend on the path.
STREAMS, DIRECT = (tuple(stage for stage in STAGES if stage.path == path) for path in ("streams", "direct"))

# Each kind of service, and what it meets in turn.
FAULTS: dict[Callable[[Stage, Path, Path], Service], list[Fault]] = {
    Sealed: [
        Fault("handshake", "reset", is_reset, STREAMS),
        Fault("handshake", "garbage", is_garbage, STREAMS),
        Fault("handshake", "stall", stalls, STREAMS),
    ],
    Staffed: [Fault("spawn", error, cannot_start, DIRECT) for error in ("EAGAIN", "ENOMEM")],
    Managed: [Fault("notify", error, is_away, STAGES) for error in ("ENOENT", "ECONNREFUSED")],
}
MATRIX = [f"{stage}-{fault}" for faults in FAULTS.values() for fault in faults for stage in fault.stages]
SERVICES = {
    f"{faults[0].call}-{stage}": (kind, stage)
    for kind, faults in FAULTS.items()
    for stage in faults[0].stages
}


@pytest.fixture(scope="module")
def played(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exception | None]:
    """The whole matrix, played once, with all services at the same time; and the end of each service."""
    directory = tmp_path_factory.mktemp("services")

    def outcomes(name: str) -> list[tuple[str, Exception | None]]:
        kind, stage = SERVICES[name]
        *rows, (_, end) = play(stage, shim, directory / name, FAULTS[kind], kind)
        return [*rows, (name, end)]

    with ThreadPoolExecutor(len(SERVICES)) as pool:
        return dict(outcome for part in pool.map(outcomes, SERVICES) for outcome in part)


@pytest.mark.fault
@pytest.mark.parametrize("name", MATRIX)
def test_a_fault_is_survived(name: str, played: dict[str, Exception | None]) -> None:
    if (error := played[name]) is not None:
        raise error


@pytest.mark.parametrize("service", SERVICES)
def test_the_counters_add_up_in_the_end(service: str, played: dict[str, Exception | None]) -> None:
    if (error := played[service]) is not None:
        raise error

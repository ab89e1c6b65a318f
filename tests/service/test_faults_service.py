"""Faults around a service: failed handshakes, workers that cannot be started, an unreachable systemd.

The second part of the matrix of test_faults.py, with the same requirements: all other clients are greeted,
descriptors return to the baseline, the log is short, and in the end the counters add up. The faults are real:
clients that misbehave, a fork(2) that fails, a socket that is not read any more.
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
from tests.conftest import PATIENCE
from tests.service.test_faults import (
    GREETING,
    STAGES,
    Fault,
    Service,
    Stage,
    read_to_end,
    run_faults,
    until,
)
from tests.support.peers import reset

if TYPE_CHECKING:
    from collections.abc import Callable

# The greet timeout of the service, in seconds.
GREET_TIMEOUT = 3.0


# -- handshake -------------------------------------------------------------------------------------------


class TLSService(Service):
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

    def connect(self, clients: int) -> list[socket.socket]:
        """Connect a number of clients at once. Their handshakes follow later."""
        self.connected += clients
        return [socket.create_connection(("127.0.0.1", self.port), PATIENCE) for _ in range(clients)]

    def count_greeted(self, clients: list[socket.socket]) -> int:
        received = 0
        for number, sock in enumerate(clients):
            client = self.context.wrap_socket(sock, server_hostname="127.0.0.1", suppress_ragged_eofs=False)
            if number % 2:
                client.sendall(b"Hello from the client")
            received += read_to_end(client) == GREETING
        return received

    def check(self, failed: int) -> None:
        assert failed == self.victims

    def hello(self) -> bytes:
        """A ClientHello."""
        outgoing = ssl.MemoryBIO()
        tls = self.context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1")
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        return outgoing.read()


def among_handshakes(
    service: TLSService, beginnings: list[bytes], finish: Callable[[list[socket.socket]], None], line: str
) -> None:
    """Inject failed handshakes among twelve other clients, one for each of ``beginnings``.

    ``finish`` then ends the failed clients. The server must log ``line`` about each.
    """
    since = time.monotonic()
    assert service.count_greeted(service.connect(2)) == 2
    early = service.connect(6)
    victims = service.connect(len(beginnings))
    service.victims += len(victims)
    for victim, beginning in zip(victims, beginnings, strict=True):
        victim.sendall(beginning)
    greeted = service.count_greeted(early + service.connect(6))
    assert greeted == 12, f"{greeted} of 12 clients were greeted"
    finish(victims)
    assert service.count_greeted(service.connect(2)) == 2
    logged = service.settle(since, 16 + len(victims), line)
    assert len(logged) == len(victims), f"{len(logged)} lines about {len(victims)} handshakes: {logged}"


def is_reset(service: TLSService, _: Fault) -> None:
    """Before the first byte, within the ClientHello, and after the server's first message."""

    def finish(victims: list[socket.socket]) -> None:
        assert victims[-1].recv(5)[:2] == b"\x16\x03", "the handshake is under way"
        for victim in victims:
            reset(victim)

    hello = service.hello()
    among_handshakes(service, [b"", hello[:50], hello], finish, r"no TLS handshake \([a-z ]+\)$")


def is_garbage(service: TLSService, _: Fault) -> None:
    """From the first byte on, within the ClientHello, after it, and more than a server would read."""

    def finish(victims: list[socket.socket]) -> None:
        for victim in victims:
            received = read_to_end(victim)
            assert GREETING not in received
            assert b"timed out" not in received, "it is closed"

    hello = service.hello()
    beginnings = [
        b"GET / HTTP/1.1\r\n\r\n",
        hello[:50] + b"\xff" * len(hello[50:]),
        hello + b"\x17\x03\x03\x00\x04junk",
        b"\x15\x03\x01\xff\xff" + bytes(60_000),
    ]
    among_handshakes(service, beginnings, finish, r"no TLS handshake \([a-z ]+\)$")


def stalls(service: TLSService, _: Fault) -> None:
    """A client that sends nothing, a part of a ClientHello, or all of it is closed at the greet deadline."""
    begun = time.monotonic()

    def finish(victims: list[socket.socket]) -> None:
        for victim in victims:
            received = read_to_end(victim)
            assert GREETING not in received
            assert b"timed out" not in received, "it is closed"
        assert time.monotonic() - begun >= GREET_TIMEOUT, "not before the deadline"

    hello = service.hello()
    among_handshakes(
        service, [b"", hello[:50], hello], finish, rf"^warning: .*: not greeted within {GREET_TIMEOUT:g} s$"
    )


# -- spawn -----------------------------------------------------------------------------------------------


class WorkerService(Service):
    """A service with two workers."""

    def __init__(self, stage: Stage, shim: Path, directory: Path) -> None:
        super().__init__(stage, shim, directory, "--workers", "2", "--metrics", "127.0.0.1:0")

    def _warm_up(self) -> int:
        """The parent's first stream is that of its first response."""
        super()._warm_up()
        sockets = self._descriptors("socket:")
        self.greeted()
        until(lambda: self._descriptors("socket:") == sockets, "the connection is closed")
        self.descriptors = self._descriptors()
        return self.descriptors

    def check(self, failed: int) -> None:
        assert failed == 0

    def workers(self) -> list[int]:
        pid = self.process.pid
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    def greeted(self) -> int:
        """How many clients all workers have greeted, as far as the parent knows."""
        found = re.search(r"Metrics on (\S+)", self._log.read_text())
        assert found
        with urllib.request.urlopen(f"http://{found[1]}/metrics", timeout=PATIENCE) as answer:
            metrics = answer.read().decode()
        (line,) = re.findall(r"^greeter_greeted_total (\S+)$", metrics, re.MULTILINE)
        return int(float(line))


def cannot_start(service: WorkerService, fault: Fault) -> None:
    """A worker dies, and its replacement cannot be started twice."""
    since = time.monotonic()
    assert service.greeted() == service.connected  # the parent has its counters before the kill
    before = service.workers()
    service.plan.arm("spawn", fault.error, 2)
    os.kill(before[0], signal.SIGKILL)
    clients = 0

    def replaced() -> bool:
        nonlocal clients
        clients += 2
        assert service.count_greeted(service.connect(2)) == 2
        return len(set(service.workers()) - {before[0]}) == 2

    until(replaced, "there are two workers again")
    assert service.plan.delivered("spawn") == 2
    assert service.count_greeted(service.connect(12)) == 12
    logged = service.settle(since, clients + 12, r"^error: |^worker \d+ serves in place of ")
    errors = [line for line in logged if line.startswith("error: ")]
    assert [line.split(":")[1].split("(")[0].strip() for line in errors] == [
        f"worker {before[0]} was killed by SIGKILL",
        "cannot start a worker",
        "cannot start a worker",
    ], logged
    assert [line.rpartition(" in ")[2] for line in errors] == ["0.1 s", "0.2 s", "0.4 s"]
    until(
        lambda: service.greeted() == service.connected, lambda: f"{service.greeted()} of {service.connected}"
    )


# -- notify ----------------------------------------------------------------------------------------------


class SystemdSocket:
    """The socket of systemd that receives notifications."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sock: socket.socket
        self.open()

    def open(self) -> None:
        self.path.unlink(missing_ok=True)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(self.path))
        self._sock.settimeout(PATIENCE)

    def close(self, *, leave_file: bool = True) -> None:
        self._sock.close()
        if not leave_file:
            self.path.unlink()

    def receive(self) -> list[str]:
        return self._sock.recv(4096).decode().split("\n")


class NotifyingService(Service):
    """A service that notifies systemd."""

    def __init__(self, stage: Stage, shim: Path, directory: Path) -> None:
        self.systemd = SystemdSocket(directory / "notify")
        self._reloads = 0
        super().__init__(stage, shim, directory, NOTIFY_SOCKET=str(self.systemd.path))
        assert self.systemd.receive()[0] == "READY=1"

    def reload(self) -> None:
        self._reloads += 1
        self.process.send_signal(signal.SIGHUP)
        until(lambda: self._log.read_text().splitlines().count("Reloaded") == self._reloads, "it reloads")

    def stop(self) -> None:
        super().stop()
        assert self.systemd.receive() == ["STOPPING=1"]

    def check(self, failed: int) -> None:
        assert failed == 0

    def close(self) -> None:
        super().close()
        self.systemd.close()


def is_away(service: NotifyingService, fault: Fault) -> None:
    """The socket is gone during two reloads. Notifications resume when it is back."""
    systemd = service.systemd
    since = time.monotonic()
    systemd.close(leave_file=fault.error == "ECONNREFUSED")
    clients = []
    for _ in range(2):
        clients += service.connect(6)
        service.reload()
    assert service.count_greeted(clients) == 12
    systemd.open()
    service.reload()
    assert systemd.receive()[0] == "RELOADING=1"
    assert systemd.receive() == ["READY=1", f"STATUS=serving on 127.0.0.1:{service.port}"]
    assert service.count_greeted(service.connect(2)) == 2
    logged = service.settle(since, 14, "Reloaded|cannot notify")
    why = {"ENOENT": "no such file or directory", "ECONNREFUSED": "connection refused"}[fault.error]
    once = f"warning: cannot notify systemd at '{systemd.path}': {why}"
    assert logged == [once, "Reloaded", "Reloaded", "Reloaded"]


# -- the matrix ------------------------------------------------------------------------------------------

# TLS faults run on the streams path only, and spawn faults on the direct path only: how workers are started
# does not depend on the path.
STREAMS, DIRECT = (tuple(stage for stage in STAGES if stage.path == path) for path in ("streams", "direct"))

# The faults of each kind of service, in order.
FAULTS: dict[Callable[[Stage, Path, Path], Service], list[Fault]] = {
    TLSService: [
        Fault("handshake", "reset", is_reset, STREAMS),
        Fault("handshake", "garbage", is_garbage, STREAMS),
        Fault("handshake", "stall", stalls, STREAMS),
    ],
    WorkerService: [Fault("spawn", error, cannot_start, DIRECT) for error in ("EAGAIN", "ENOMEM")],
    NotifyingService: [Fault("notify", error, is_away, STAGES) for error in ("ENOENT", "ECONNREFUSED")],
}
MATRIX = [f"{stage}-{fault}" for faults in FAULTS.values() for fault in faults for stage in fault.stages]
SERVICES = {
    f"{faults[0].call}-{stage}": (kind, stage)
    for kind, faults in FAULTS.items()
    for stage in faults[0].stages
}


@pytest.fixture(scope="module")
def results(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exception | None]:
    """The results of the whole matrix, run once with all services at the same time, and of their stops."""
    directory = tmp_path_factory.mktemp("services")

    def outcomes(name: str) -> list[tuple[str, Exception | None]]:
        kind, stage = SERVICES[name]
        *rows, (_, end) = run_faults(stage, shim, directory / name, FAULTS[kind], kind)
        return [*rows, (name, end)]

    with ThreadPoolExecutor(len(SERVICES)) as pool:
        return dict(outcome for part in pool.map(outcomes, SERVICES) for outcome in part)


@pytest.mark.fault
@pytest.mark.parametrize("name", MATRIX)
def test_a_fault_is_survived(name: str, results: dict[str, Exception | None]) -> None:
    if (error := results[name]) is not None:
        raise error


@pytest.mark.parametrize("service", SERVICES)
def test_the_counters_add_up_in_the_end(service: str, results: dict[str, Exception | None]) -> None:
    if (error := results[service]) is not None:
        raise error

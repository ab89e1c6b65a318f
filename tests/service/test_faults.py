"""System calls that fail in a running service, one kind at a time: all other clients are greeted.

A real ``greeter serve`` runs under tests/support/faults.c for each stage, which is an event loop and an
accept path. Every fault falls into the middle of a stream of clients. After it the service must have
greeted every client that it did not hit, have as many descriptors open as before, have logged next to
nothing, and not have spun; at the end its counters must add up. A fault that was never delivered fails its
test.

To add to the matrix, add to FAULTS: a row is a name, a function that plays it, and the stages it is for.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.conftest import ROOT, loop_factories

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

WHOLE = b"Thank you for connecting"
# A client that hears nothing for so long, in seconds, has been forgotten.
PATIENCE = 10.0
# For how long there is nothing to accept with; a service that spins would not stay unnoticed.
HARD_TIMES = 0.5
# A service that rests between two tries makes no more accept calls than this in HARD_TIMES, one that spins
# thousands.
CALM = 4


class Stage(NamedTuple):
    """What a service is started with."""

    loop: str
    path: str

    def __str__(self) -> str:
        return f"{self.loop}-{self.path}"


@dataclass(frozen=True)
class Fault:
    """A row of the matrix: ``play`` injects it into a service and raises if the service suffers."""

    call: str
    error: str
    play: Callable[[Any, Fault], None]
    stages: tuple[Stage, ...]

    def __str__(self) -> str:
        return f"{self.call}-{self.error}"


class Plan:
    """The side of the test of the file that tests/support/faults.c shares with it."""

    ENTRY = struct.Struct("12s5i")  # struct plan
    SKIP, LEFT, ERROR, PART, DELIVERED = range(5)

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._file = mmap.mmap(file.fileno(), 0)
        names = [entry[0].rstrip(b"\0").decode() for entry in self.ENTRY.iter_unpack(self._file[:])]
        self._offset = {name: number * self.ENTRY.size + 12 for number, name in enumerate(names)}

    def close(self) -> None:
        self._file.close()

    def _get(self, call: str, field: int) -> int:
        return int(struct.unpack_from("i", self._file, self._offset[call] + 4 * field)[0])

    def _set(self, call: str, field: int, value: int) -> None:
        struct.pack_into("i", self._file, self._offset[call] + 4 * field, value)

    def arm(self, call: str, error: str, count: int, *, skip: int = 0, part: int = 0) -> None:
        """Let ``count`` calls fail after the next ``skip``; the first takes ``part`` bytes, if any."""
        self._set(call, self.DELIVERED, 0)
        self._set(call, self.SKIP, skip)
        self._set(call, self.ERROR, getattr(errno, error))
        self._set(call, self.PART, part)
        self._set(call, self.LEFT, count)  # last: from now on it counts

    def disarm(self, call: str) -> None:
        self._set(call, self.LEFT, 0)

    def delivered(self, call: str) -> int:
        return self._get(call, self.DELIVERED)


class Service:
    """``greeter serve`` with faults.c, as one stage."""

    def __init__(self, stage: Stage, shim: Path, directory: Path, *options: str, **env: str) -> None:
        self.stage = stage
        self.knocks = 0  # clients that came
        self._log = directory / "log"
        self._read = 0  # of the log, in bytes
        command = ["serve", "--listen", "127.0.0.1:0", "--loop", stage.loop, "--accept", stage.path, *options]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "greeter", *command],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, "LD_PRELOAD": str(shim), "FAULTS_FILE": str(directory / "plan"), **env},
            )
        found: list[str] = []

        def listening() -> bool:
            found.extend(re.findall(r"Listening on 127\.0\.0\.1:(\d+) ", "\n".join(self.news())))
            assert self.process.poll() is None, self._log.read_text()
            return bool(found)

        until(listening, "it listens")
        self.port = int(found[0])
        self.plan = Plan(directory / "plan")
        self.descriptors = self._warm_up()

    def _warm_up(self) -> int:
        """Let the loop open what it keeps for itself, the first time that it makes a stream."""
        sockets = self._descriptors("socket:")
        since = time.monotonic()
        assert self.heard_by(self.knock(2)) == 2
        until(lambda: self._descriptors("socket:") == sockets, "warm")
        self.descriptors = self._descriptors()
        self.settle(since, 2)
        return self.descriptors

    def _descriptors(self, kind: str = "") -> int:
        """How many the process has open, of all or of one kind."""
        directory = f"/proc/{self.process.pid}/fd"
        found = 0
        for fd in os.listdir(directory):
            with contextlib.suppress(FileNotFoundError):  # closed since
                found += os.readlink(f"{directory}/{fd}").startswith(kind)
        return found

    def news(self) -> list[str]:
        """The whole lines that the log got since it was last asked."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            data = log.read()
        end = data.rfind(b"\n") + 1
        self._read += end
        return data[:end].decode().splitlines()

    def knock(self, clients: int) -> list[socket.socket]:
        """So many clients at once; every other one speaks first."""
        self.knocks += clients
        socks = [socket.create_connection(("127.0.0.1", self.port), PATIENCE) for _ in range(clients)]
        for sock in socks[::2]:
            sock.sendall(b"Hello, is there anybody in there?")
        return socks

    def heard_by(self, clients: list[socket.socket]) -> int:
        """How many of ``clients`` are greeted: every byte, and the end of stream."""
        return [read_to_end(client) for client in clients].count(WHOLE)

    def settle(self, since: float, clients: int, expected: str = "") -> list[str]:
        """Look for what the last ``clients``, from time ``since`` on, have left behind.

        Returns the lines of the log that match ``expected``, of which there may be more than few.
        """
        accepted = 0
        said: list[str] = []
        others: list[str] = []

        def all_logged() -> bool:
            nonlocal accepted
            for line in self.news():
                if line.startswith("Got a connection from "):
                    accepted += 1
                elif expected and re.search(expected, line):
                    said.append(line)
                else:
                    others.append(textwrap.shorten(line, 200))
            return accepted >= clients

        until(all_logged, lambda: f"{accepted} of {clients} clients accepted, log: {others}")
        assert accepted == clients, f"{accepted} accepted of {clients} clients"
        before = self.descriptors
        until(
            lambda: self._descriptors() == before,
            lambda: f"{self._descriptors()} descriptors, {before} before",
        )
        allowed = 1 + int(time.monotonic() - since)
        assert "Traceback" not in "".join(others), f"{len(others)} log lines: {others}"
        assert all(line.startswith("warning: ") for line in others), others
        assert len(others) <= allowed, f"{len(others)} log lines, at most {allowed}: {others}"
        assert self.process.poll() is None, "it lives"
        return said

    def stop(self) -> None:
        """It ends in order, and its counters add up."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == 0
        last = self.news()[-1]
        match = re.match(r"Stopped: (\d+) greeted of (\d+) accepted, (\d+) failed", last)
        assert match, last
        greeted, accepted, failed = map(int, match.groups())
        assert (accepted, greeted + failed) == (self.knocks, self.knocks)
        self.check(failed)

    def check(self, failed: int) -> None:
        """So many clients were not greeted, in all."""
        assert failed > 0, "some of them were hit"

    def close(self) -> None:
        self.plan.close()
        self.process.kill()
        self.process.wait()


def read_to_end(client: socket.socket) -> bytes:
    """What a client hears; the beginning of it if it is reset or forgotten."""
    heard = b""
    with client:
        try:
            while data := client.recv(1000):
                heard += data
        except OSError as error:
            return heard + b" ... " + str(error).encode()
    return heard


def until(condition: Callable[[], bool], what: str | Callable[[], str]) -> None:
    """Watch another process, which has no way to tell us, until ``condition()`` is true."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE} s: {what if isinstance(what, str) else what()}"
        time.sleep(0.002)


# -- how a fault is played -------------------------------------------------------------------------------


def among_others(service: Service, fault: Fault, *, costs: bool = True, **arm: int) -> None:
    """Two calls fail while twelve clients are there; none but those who were hit may notice."""
    since = time.monotonic()
    assert service.heard_by(service.knock(2)) == 2
    service.plan.arm(fault.call, fault.error, **{"count": 2, "skip": 2, **arm})
    clients = service.knock(12)
    heard = service.heard_by(clients)
    hit = service.plan.delivered
    count = arm.get("count", 2)
    until(lambda: hit(fault.call) == count, lambda: f"{hit(fault.call)} of {count} {fault} delivered")
    assert heard >= 12 - (count if costs else 0), f"{heard} of 12 clients heard it all"
    assert service.heard_by(service.knock(2)) == 2
    service.settle(since, 16)


def costs_no_client(service: Service, fault: Fault) -> None:
    """The connection is still there: the next call, or the rest of this one, succeeds."""
    among_others(service, fault, costs=False)


def takes_a_part(service: Service, fault: Fault) -> None:
    """The kernel takes 10 bytes and then, three times, no more."""
    among_others(service, fault, costs=False, count=4, part=10)


def hard_times(service: Service, fault: Fault) -> None:
    """Nothing to accept with for a while: clients wait in the queue, and are greeted when it is over."""
    since = time.monotonic()
    assert service.heard_by(service.knock(2)) == 2
    hit = service.plan.delivered
    # First a single failure, as of a system that recovers at once.
    service.plan.arm(fault.call, fault.error, 1, skip=2)
    clients = service.knock(6)
    until(lambda: hit(fault.call) == 1, f"{fault} delivered")
    service.plan.arm(fault.call, fault.error, 1_000_000)
    clients += service.knock(6)
    time.sleep(HARD_TIMES)  # not to wait for anything: to see how often it tries meanwhile
    tries = hit(fault.call)
    service.plan.disarm(fault.call)
    heard = service.heard_by(clients)
    assert tries <= CALM, f"{tries} tries to accept in {HARD_TIMES} s"
    assert heard == 12, f"{heard} of 12 clients heard it all"
    assert service.heard_by(service.knock(2)) == 2
    service.settle(since, 16)


# -- the matrix ------------------------------------------------------------------------------------------

STAGES = tuple(Stage(loop, path) for loop in loop_factories() for path in ("direct", "streams"))
# Without descriptors, libuv accepts connections and closes them, and tells nothing of it: the exception that
# the streams path has (greeter/server/streams.py). With no memory it tries in every turn, and loses none.
OURS_TO_ACCEPT = tuple(stage for stage in STAGES if stage != Stage("uvloop", "streams"))
# The address of a client comes from accept(), but on uvloop.
ASKS_FOR_NAMES = tuple(stage for stage in STAGES if stage == Stage("uvloop", "streams"))

FAULTS = [
    *(
        Fault("accept", error, hard_times, OURS_TO_ACCEPT)
        for error in ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM")
    ),
    *(
        Fault("accept", error, costs_no_client, STAGES)
        for error in ("ECONNABORTED", "EPROTO", "EPERM", "EINTR")
    ),
    *(Fault("send", error, among_others, STAGES) for error in ("EPIPE", "ECONNRESET", "ENOBUFS")),
    Fault("send", "EAGAIN", takes_a_part, STAGES),
    *(Fault("recv", error, among_others, STAGES) for error in ("ECONNRESET", "ETIMEDOUT")),
    Fault("shutdown", "ENOTCONN", among_others, STAGES),
    Fault("getpeername", "ENOTCONN", costs_no_client, ASKS_FOR_NAMES),
]
MATRIX = [f"{stage}-{fault}" for fault in FAULTS for stage in fault.stages]


def play(
    stage: Stage,
    shim: Path,
    directory: Path,
    faults: Sequence[Fault] = FAULTS,
    serve: Callable[[Stage, Path, Path], Service] = Service,
) -> Iterator[tuple[str, Exception | None]]:
    """All the faults of one stage, in turn: each name, and what went wrong."""
    service: Service | None = None
    for number, fault in enumerate(fault for fault in faults if stage in fault.stages):
        try:
            if service is None:
                (directory / str(number)).mkdir(parents=True)
                service = serve(stage, shim, directory / str(number))
            fault.play(service, fault)
            yield f"{stage}-{fault}", None
        except Exception as error:
            yield f"{stage}-{fault}", error
            if service is not None:  # the next fault gets a service that this one has not touched
                service.close()
                service = None
    try:
        assert service is not None, "the last fault was not survived"
        service.stop()
        yield f"{stage}-end", None
    except Exception as error:
        yield f"{stage}-end", error
    if service is not None:
        service.close()


@pytest.fixture(scope="module")
def played(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exception | None]:
    """The whole matrix, played once, with all stages at the same time."""
    directory = tmp_path_factory.mktemp("services")
    with ThreadPoolExecutor(len(STAGES)) as pool:
        parts = pool.map(lambda stage: list(play(stage, shim, directory / str(stage))), STAGES)
        return dict(outcome for part in parts for outcome in part)


@pytest.mark.fault
@pytest.mark.parametrize("name", MATRIX)
def test_a_fault_is_survived(name: str, played: dict[str, Exception | None]) -> None:
    if (error := played[name]) is not None:
        raise error


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_the_counters_add_up_in_the_end(stage: Stage, played: dict[str, Exception | None]) -> None:
    if (error := played[f"{stage}-end"]) is not None:
        raise error

"""One run of the scenario: a service starts, has clients, reloads, and is stopped; and what came of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.conftest import PATIENCE, ROOT, without_coverage
from tests.faults.services import Client, Files, Kind
from tests.support.fault_plan import Plan

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.services import Behaviour


@dataclass(frozen=True)
class Fault:
    """The call that fails: the name of its plan, which of these calls it is, from 1 on, and its error."""

    call: str
    number: int
    error: str

    def __str__(self) -> str:
        return f"{self.call} {self.number} {self.error}"


@dataclass
class Record:
    """What a run has shown.

    - ``hit_in``: the phase in which the fault was injected, ``""`` if it was not.
    - ``connected``, ``greeted``: the clients of each phase.
    - ``descriptors``: how many the service had open when its clients were gone.
    - ``lines``: its log. ``code``: its exit code. ``seen``: how often each call was made.
    - ``hung``: what was waited for in vain.
    """

    hit_in: str = ""
    connected: dict[str, int] = field(default_factory=dict)
    greeted: dict[str, int] = field(default_factory=dict)
    descriptors: int = 0
    lines: list[str] = field(default_factory=list)
    code: int | None = None
    seen: dict[str, int] = field(default_factory=dict)
    hung: str = ""


class Hung(Exception):
    """Nothing has come of what was waited for."""


class Zygote:
    """A process that forks a service at a time: zygote.py.

    Args:
        shim: faults.c, compiled.
    """

    def __init__(self, shim: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # At the stop of a service, coverage would be the one to meet a fault of unlink(2).
            env=without_coverage() | {"LD_PRELOAD": str(shim)},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def start(self, request: dict[str, Any]) -> int:
        """Start a service; returns its process ID."""
        self._requests.write(json.dumps(request).encode() + b"\n")
        self._requests.flush()
        return int(self._answers.readline())

    @property
    def exits(self) -> int:
        """A descriptor that is readable when the service has exited."""
        return self._answers.fileno()

    def exit_code(self) -> int:
        return int(self._answers.readline())

    def close(self) -> None:
        self._requests.close()
        self._process.wait(PATIENCE)
        self._answers.close()


class Run:
    """A run of the scenario.

    Args:
        kind: The kind of service.
        loop: Its event loop.
        fault: What fails; None to count the calls.
        zygote: What starts it.
        files: What it reads.
        directory: A new directory, outside that of ``files``.
        base: How many descriptors may be open when the clients are gone; None to find it out.
    """

    def __init__(
        self,
        kind: Kind,
        loop: str,
        fault: Fault | None,
        *,
        zygote: Zygote,
        files: Files,
        directory: Path,
        base: int | None = None,
    ) -> None:
        self.record = Record()
        self._kind, self._fault, self._zygote, self._files, self._base = kind, fault, zygote, files, base
        self._directory = directory
        fifo = directory / "log"
        os.mkfifo(fifo)
        self._log = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        self._unread = b""
        self._addresses: list[str] = []
        env = {
            "FAULTS_FILE": str(directory / "plan"),
            "FAULTS_DIR": str(files.directory),
            "FAULTS_COUNT": "1",
            "PYTHONPATH": f"{ROOT}:{files.directory}",
        }
        if kind.notifies:
            self._systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._systemd.bind(str(directory / "systemd"))
            env["NOTIFY_SOCKET"] = str(directory / "systemd")
        options = kind.options.replace("DIR", str(files.directory)).replace("ROW", str(directory)).split()
        timeouts = ["--greet-timeout", "6", "--linger-timeout", "4", "--drain-timeout", "8"]
        self._pid = zygote.start(
            {
                "arguments": ["serve", "--loop", loop, *options, *timeouts],
                "env": env,
                "fault": None if fault is None else vars(fault),
                "log": str(fifo),
            }
        )

    def play(self) -> Record:
        """Go through the scenario to its end."""
        record = self.record
        try:
            self._play()
        except Hung as error:
            record.hung = str(error)
        except OSError as error:
            record.hung = f"a client: {error}"
        finally:
            self._end()
        return record

    def _play(self) -> None:
        if not self._wait_for("At most "):
            self._hit("start")
            return
        self._addresses = [line.split()[2] for line in self.record.lines if line.startswith("Listening on ")]
        self._hit("start")
        self._greet("clients", "reads", "speaks", "resets")
        if self._kind.metrics:
            self._ask_for_metrics()
        self._settle()
        self._hit("clients")
        os.kill(self._pid, signal.SIGHUP)
        self._wait_for("Reloaded|reload failed")
        self._greet("reload", "reads")
        self._settle()
        self._hit("reload")
        waiting = self._connect("stop", "reads")
        os.kill(self._pid, signal.SIGTERM)
        self._read("stop", waiting)
        self._wait_for("nothing")
        self._hit("stop")

    def _hit(self, phase: str) -> None:
        if self._fault is not None and not self.record.hit_in:
            plan = Plan(self._directory / "plan")
            if plan.delivered(self._fault.call):
                self.record.hit_in = phase
            plan.close()

    def _connect(self, phase: str, *behaviours: Behaviour) -> list[Client]:
        self.record.connected[phase] = len(behaviours)
        address = self._addresses[0]
        return [Client(self._kind, address, self._files, behaviour) for behaviour in behaviours]

    def _read(self, phase: str, clients: list[Client]) -> None:
        try:
            with ThreadPoolExecutor(len(clients)) as pool:
                self.record.greeted[phase] = sum(pool.map(Client.greeted, clients))
        except TimeoutError as error:
            raise Hung(f"a client in {phase}: {error}") from None

    def _greet(self, phase: str, *behaviours: Behaviour) -> None:
        self._read(phase, self._connect(phase, *behaviours))

    def _ask_for_metrics(self) -> None:
        found = [line.split()[2] for line in self.record.lines if line.startswith("Metrics on ")]
        if not found:
            return
        host, port = found[0].rsplit(":", 1)
        with (
            contextlib.suppress(ConnectionError),
            socket.create_connection((host, int(port)), PATIENCE) as sock,
        ):
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            while sock.recv(65536):
                pass

    def _settle(self) -> None:
        """Wait until the service has closed what belongs to its clients."""
        if self._base is None:
            time.sleep(0.5)  # only when calls are counted
            self.record.descriptors = self._descriptors()
            return
        end = time.monotonic() + PATIENCE
        while (count := self._descriptors()) > self._base and time.monotonic() < end:
            time.sleep(0.01)
        self.record.descriptors = max(self.record.descriptors, count)

    def _descriptors(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return len(os.listdir(f"/proc/{self._pid}/fd"))
        return 0

    def _wait_for(self, text: str) -> bool:
        """Wait for a line that begins with ``text``. Returns False if the service exits before."""
        end = time.monotonic() + PATIENCE
        begun = len(self.record.lines)
        while True:
            self._read_log()
            if any(re.match(f"(error: )?({text})", line) for line in self.record.lines[begun:]):
                return True
            left = max(0.0, end - time.monotonic())
            ready, _, _ = select.select([self._log, self._zygote.exits], [], [], left)
            if self._zygote.exits in ready:
                self.record.code = self._zygote.exit_code()
                self._read_log()
                return False
            if not ready:
                raise Hung(f"no {text!r} from the service")

    def _read_log(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._log, 65536):
                self._unread += data
        *lines, self._unread = self._unread.split(b"\n")
        self.record.lines += [line.decode(errors="replace") for line in lines]

    def _end(self) -> None:
        """The service is gone afterwards, whatever has become of it."""
        if self.record.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._zygote.exit_code()
        self._read_log()
        plan = Plan(self._directory / "plan")
        self.record.seen = plan.seen()
        plan.close()
        os.close(self._log)
        if self._kind.notifies:
            self._systemd.close()

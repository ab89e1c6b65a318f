"""The process under test: its start, what /proc tells about it, its limits and its end.

Invariants:

- Only processes of its own session are signalled. ``end`` leaves none of them.
- Every wait is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import resource
import signal
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trustme

from greeter.system.tls import client_context
from tests.conftest import ROOT
from tests.support.fault_plan import Plan
from tests.support.proc import session_members, state_and_session
from tests.support.service_peers import INIT, scrape
from tests.support.shims import compile_shim

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from tests.torture.schedule import ServiceSpec

# How long anything may take before it counts as stuck, in seconds.
PATIENCE = 30.0
APP = """
import asyncio, itertools, pathlib, time
from greeter import Greeting

TEXT = (pathlib.Path(__file__).parent / "greeting").read_bytes()
count = itertools.count()
pauses = itertools.cycle([0.001, 0.005, 0.03])

async def slow(peer):
    await asyncio.sleep(next(pauses))
    return TEXT

async def at_once(peer):
    return TEXT

def thread(peer):
    time.sleep(0.005)
    return TEXT

async def flaky(peer):
    await asyncio.sleep(0.001)
    if next(count) % 4 == 3:
        raise ValueError("every fourth client")
    return TEXT

quick = Greeting(lambda peer: TEXT, quick=True)
"""
CALLABLES = {"async": "slow", "at once": "at_once", "thread": "thread", "quick": "quick", "flaky": "flaky"}
TEMPLATE = "to $host"


@dataclass(frozen=True)
class Workshop:
    """What all services share: a directory, libraries for LD_PRELOAD, a certificate."""

    directory: Path
    preload: str
    context: ssl.SSLContext

    @classmethod
    def open(cls, directory: Path) -> Workshop:
        """Make all of it in ``directory``. Raises NoCompilerError."""
        shims = [compile_shim(name, directory) for name in ("faults.c", "clock.c")]
        authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
        authority.cert_pem.write_to_path(directory / "ca.pem")
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_and_cert_chain_pem.write_to_path(directory / "both.pem")
        return cls(directory, ":".join(map(str, shims)), client_context(directory / "ca.pem"))


class Service:
    """``greeter serve`` in a session of its own.

    Attributes:
        pid: The process that was started.
        addresses: Where it listens, as its log says, by endpoint: ``tcp``, ``unix``, ``udp``.
        greeting: The bytes that it sends, except for a template.
        plan: The faults of its system calls.
    """

    plan: Plan

    def __init__(self, spec: ServiceSpec, workshop: Workshop, directory: Path) -> None:
        self.spec = spec
        self.greeting = b"greeter! "[: spec.size] + b"x" * (spec.size - 9)
        self.addresses: dict[str, str] = {}
        self._workshop = workshop
        self._directory = directory
        self._log = bytearray()
        self._pipe = -1
        self._metrics = ""
        self._process: asyncio.subprocess.Process

    @property
    def context(self) -> ssl.SSLContext:
        """The TLS context of its clients."""
        return self._workshop.context

    # -- start and end

    async def start(self) -> None:
        """Start it, and wait until it serves. Raises AssertionError if it does not."""
        self._directory.mkdir()
        (self._directory / "greeting").write_bytes(self.greeting)
        (self._directory / "torture_app.py").write_text(APP)
        (self._directory / "clock").write_bytes(bytes(8))
        self.write_config(broken=False)
        stderr = self._open_log()
        try:
            command = [sys.executable, "-m", "greeter"]
            if self.spec.files:
                command = [sys.executable, "-c", INIT, json.dumps([[], self.spec.files])]
            self._process = await asyncio.create_subprocess_exec(
                *command,
                *self._arguments(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                cwd=ROOT,
                env={
                    **os.environ,
                    "LD_PRELOAD": self._workshop.preload,
                    "FAULTS_FILE": str(self._directory / "plan"),
                    "FAULTS_DIR": str(self._directory),
                    "CLOCK_FILE": str(self._directory / "clock"),
                    "PYTHONPATH": str(self._directory),
                },
                start_new_session=True,
            )
        finally:
            os.close(stderr)
        self.pid = self._process.pid
        await self._ready()
        self.plan = Plan(self._directory / "plan")

    def _arguments(self) -> list[str]:
        spec, unix = self.spec, f"unix:{self._directory}/"
        metrics = unix + "metrics" if spec.log == "full" else "127.0.0.1:0"
        found = ["serve", "--loop", spec.loop, "--accept", spec.path, "--workers", str(spec.workers)]
        found += ["--metrics", metrics, "--log-format", "json", "--config", str(self._config)]
        listen = {"tcp": "127.0.0.1:0", "unix": unix + "socket", "udp": "udp:127.0.0.1:0"}
        for endpoint in spec.endpoints:
            found += ["--listen", listen[endpoint]]
        if spec.greeting == "fixed":
            found += ["--greeting-file", str(self._directory / "greeting")]
        elif spec.greeting == "template":
            found += ["--greeting", TEMPLATE]
        else:
            found += ["--app", f"torture_app:{CALLABLES[spec.greeting]}"]
        if spec.tls:
            found += ["--tls-cert", str(self._workshop.directory / "both.pem")]
        if spec.proxy:
            found += ["--proxy-protocol", "--proxy-from", "127.0.0.0/8"]
        for name in ("greet_timeout", "linger_timeout", "drain_timeout", "stop_delay"):
            found += [f"--{name.replace('_', '-')}", f"{getattr(spec, name):g}"]
        for name in ("max_connections", "max_per_ip"):
            if value := getattr(spec, name):
                found += [f"--{name.replace('_', '-')}", str(value)]
        return found

    async def _ready(self) -> None:
        """Wait until all lines of a start are in the log, or without a log, until it answers."""
        if self.spec.log == "full":
            self._metrics = f"unix:{self._directory}/metrics"
            self.addresses = {"unix": f"unix:{self._directory}/socket"}
            await self._until(lambda: (self._directory / "metrics").exists(), "it listens")
            return
        await self._until(lambda: b'"event": "limit"' in self.log(), "it serves")
        for line in self.log().decode().splitlines():
            found = json.loads(line)
            if found.get("event") == "listening":
                kind = found["address"].partition(":")[0]
                self.addresses[kind if kind in ("unix", "udp") else "tcp"] = found["address"]
            elif found.get("event") == "metrics":
                self._metrics = found["message"].rpartition(" ")[2]

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            code = self._process.returncode
            log = self.log()[-2000:].decode(errors="replace")
            assert code is None, f"it exited with {code} before {what}: {log}"
            assert time.monotonic() < end, f"not within {PATIENCE:g} s: {what}: {log}"
            await asyncio.sleep(0.01)

    async def exited(self, seconds: float) -> int | None:
        """Wait for the process that was started. Returns its exit code, None if it did not exit in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._process.wait()
        return None

    async def all_exited(self, seconds: float) -> bool:
        """Wait until no process of the session runs. Returns False if one does after so long."""
        end = time.monotonic() + seconds
        while self.running():
            if time.monotonic() >= end:
                return False
            await asyncio.sleep(0.01)
        return True

    def end(self) -> None:
        """Kill what is left of the session, and close what this object has open."""
        if hasattr(self, "pid"):
            for pid in session_members(self.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if hasattr(self, "plan"):
            self.plan.close()
        if self._pipe >= 0:
            asyncio.get_running_loop().remove_reader(self._pipe)
            os.close(self._pipe)
            self._pipe = -1

    # -- processes

    def running(self) -> list[int]:
        """All its processes that have not exited."""
        found = []
        for pid in session_members(self.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if state_and_session(pid)[0] not in "ZX":
                    found.append(pid)
        return found

    def workers(self) -> list[int]:
        """Its workers, none if it serves in the process that was started."""
        return [pid for pid in self.running() if pid != self.pid]

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to one of its processes, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            if pid in self.running():
                os.kill(pid, number)

    def limit_descriptors(self, pid: int, further: int | None) -> None:
        """Allow a process so many descriptors more than it has, or with None, as many as at its start."""
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
            soft = hard
            if further is not None:
                highest = max(map(int, os.listdir(f"/proc/{pid}/fd")))
                soft = min(hard, highest + 1 + further)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))

    def open_connections(self, pid: int) -> int:
        """How many connections of clients a process has open."""
        inodes = set()
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                if found := re.match(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{fd}")):
                    inodes.add(found[1])
        count = 0
        if "tcp" in self.addresses:
            port = f":{int(self.addresses['tcp'].rpartition(':')[2]):04X}"
            for row in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
                columns = row.split()
                count += columns[1].endswith(port) and columns[3] != "0A" and columns[9] in inodes
        if "unix" in self.addresses:
            path = self.addresses["unix"].removeprefix("unix:")
            for row in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
                columns = row.split()
                count += columns[-1] == path and columns[5] != "01" and columns[6] in inodes
        return count

    async def counters(self) -> dict[str, float]:
        """What it counts. Raises OSError, which TimeoutError is, if it does not answer."""
        async with asyncio.timeout(PATIENCE):
            try:
                return await scrape(self._metrics)
            except ConnectionError as error:
                if "''" not in str(error):
                    raise
            # On a starved machine, the deadline of the exchange can pass before there is an answer.
            return await scrape(self._metrics)

    # -- log, clock and configuration

    def _open_log(self) -> int:
        if self.spec.log == "full":
            return os.open("/dev/full", os.O_WRONLY)
        if self.spec.log == "file":
            return os.open(self._directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._pipe, writing = os.pipe()
        fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(self._pipe, False)
        self.read_log(True)
        return writing

    def read_log(self, reading: bool) -> None:
        """Read the pipe of the log from now on, or do not."""
        loop = asyncio.get_running_loop()
        if self._pipe >= 0 and reading:
            loop.add_reader(self._pipe, self._receive)
        elif self._pipe >= 0:
            loop.remove_reader(self._pipe)

    def _receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._pipe, 1 << 20)
            self._log += data
            if not data:
                asyncio.get_running_loop().remove_reader(self._pipe)

    def log(self) -> bytes:
        """The log so far; none on a full device."""
        file = self._directory / "log"
        if file.exists():
            return file.read_bytes()
        if self._pipe >= 0:
            self._receive()
        return bytes(self._log)

    def set_clock(self, seconds: int) -> None:
        """Let the time of day be so many seconds later than it is."""
        with (self._directory / "clock").open("r+b") as file:
            file.write(struct.pack("q", seconds))

    @property
    def _config(self) -> Path:
        return self._directory / "greeter.toml"

    def write_config(self, *, broken: bool) -> None:
        """Write the configuration file, which a reload reads."""
        text = "backlog = many\n" if broken else "backlog = 2048\n"
        new = self._config.with_suffix(".new")
        new.write_text(text)
        new.rename(self._config)  # a reload never reads the half of it

    def socket_file_left(self) -> bool:
        """Whether the file of its Unix socket is still there."""
        return (self._directory / "socket").exists()

"""Run one of the programs, with the commands that reload, stop and start it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greeter.conformance import CheckPlan
from greeter.conformance.listening import inodes, owners
from greeter.core.endpoint import Endpoint
from tests.conftest import PATIENCE
from tests.support.free_ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.services.programs import Prepared


@dataclass(frozen=True)
class Service:
    """A service that runs.

    Attributes:
        prepared: How it was started.
        target: Its endpoint.
        pid: Its first process.
        start: The shell command that starts it.
        stop: The shell command that stops it.
        restart: The shell command that reloads it; None without a reload.
    """

    prepared: Prepared
    target: str
    pid: int
    start: str
    stop: str
    restart: str | None

    def plan(self, **options: Any) -> CheckPlan:
        """Returns how to check it, with the arguments of CheckPlan that are given beside that."""
        profile = dataclasses.asdict(self.prepared.profile) | {"until": self.prepared.profile.until}
        target = Endpoint.parse(self.target)
        prepared = self.prepared
        return CheckPlan(
            target, proxy_protocol=prepared.proxy_protocol, tls=prepared.tls, **profile, **options
        )


@contextlib.contextmanager
def running(prepare: Callable[[Path, int], Prepared]) -> Iterator[Service]:
    """Run a service from when it accepts until the block ends, also one that was started again."""
    with tempfile.TemporaryDirectory(prefix="greeter-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        os.chmod(folder, 0o755)  # other users run some of them
        port = free_port()
        prepared = prepare(folder, port)
        file = folder / "pid"
        script = folder / "start"
        words = " ".join(f"'{word}'" for word in prepared.command)
        script.write_text(f"echo $$ > {file}\nexec {words} > {folder}/log 2>&1\n")
        process = subprocess.Popen(["/bin/sh", str(script)], stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            _wait_until(_answers if prepared.datagrams else _accepts, port, process, folder / "log")
            yield Service(
                prepared,
                f"udp:127.0.0.1:{port}" if prepared.datagrams else f"127.0.0.1:{port}",
                process.pid,
                start=f"/bin/sh {script}",
                stop=f"kill -{prepared.stop} $(cat {file})",
                restart=f"kill -{prepared.reload} $(cat {file}); sleep 0.3" if prepared.reload else None,
            )
        finally:
            _end(process, port)


def _end(process: subprocess.Popen[bytes], port: int) -> None:
    groups = {process.pid}
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
    found = [inode for kind in kinds for inode in inodes(socket.AF_INET, ("127.0.0.1", port), kind)]
    for pid in owners(*found):
        with contextlib.suppress(ProcessLookupError):
            groups.add(os.getpgid(pid))
    for number in (signal.SIGTERM, signal.SIGKILL):
        for group in groups - {os.getpgid(0)}:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0 if number is signal.SIGTERM else PATIENCE)


def _wait_until(
    serves: Callable[[int], bool], port: int, process: subprocess.Popen[bytes], log: Path
) -> None:
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        if serves(port):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} does not serve: {log.read_text(errors='replace')}")


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False


def _answers(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.settimeout(1.0)
        sock.connect(("127.0.0.1", port))
        sock.send(b"?")
        return bool(sock.recv(65535))
    return False

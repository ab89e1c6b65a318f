"""The process behind the listening socket, and the commands that act on it.

Invariants:

- A process that does not have the listening socket open, and is not the parent of one that has, is refused.
- What was changed is put back: a stopped process goes on, and a lowered descriptor limit is raised again. A
  helper process, which survives this one, does that if this one cannot.
- A command has a deadline, and what it leaves behind is ended with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from greeter.conformance.listening import listening, owners
from greeter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from greeter.conformance.probe import Dial

COMMAND_SECONDS = 20.0
# Waits for the end of its standard input, which this process holds open, and then lets a process go on.
_WATCHER = """
import os, resource, signal, sys
sys.stdin.read()
for word in sys.argv[1:]:
    pid, _, soft = word.partition(":")
    try:
        if soft:
            hard = resource.prlimit(int(pid), resource.RLIMIT_NOFILE)[1]
            resource.prlimit(int(pid), resource.RLIMIT_NOFILE, (int(soft), hard))
        else:
            os.kill(int(pid), signal.SIGCONT)
    except (OSError, ValueError):
        pass
"""


def serving_pids(dial: Dial, pid: int) -> list[int]:
    """Returns the processes that accept at an address: ``pid``, and its children that have the socket open.

    Raises:
        ConfigError: ``pid`` has nothing to do with the listening socket.
    """
    socket = listening(dial.family, dial.address)
    having = owners(socket.inode) if socket is not None else []
    found = [other for other in having if other == pid or parent(other) == pid]
    if not found:
        raise ConfigError(f"process {pid} does not listen at the target, nor does a child of it")
    return [pid, *(other for other in found if other != pid)]


def listening_pid(dial: Dial) -> int | None:
    """Returns the process that listens at an address: the parent of the others that do; None if unknown."""
    socket = listening(dial.family, dial.address)
    having = owners(socket.inode) if socket is not None else []
    tops = [pid for pid in having if parent(pid) not in having]
    return tops[0] if tops else None


def parent(pid: int) -> int:
    """Returns the parent of a process; 0 if there is no such process."""
    return int(_status(pid).get("PPid", "0"))


def wakeups(pid: int) -> int:
    """Returns how often a process was switched to, over all of its threads."""
    total = 0
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            status = _read(f"/proc/{pid}/task/{task}/status")
            total += sum(
                int(line.split()[1]) for line in status.splitlines() if "voluntary_ctxt_switches" in line
            )
    return total


def cpu_seconds(pid: int) -> float:
    """Returns the CPU time of a process, in seconds."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def log_size(pid: int) -> int:
    """Returns the size of the file that a process writes its errors to, in bytes; 0 if it is no file."""
    with contextlib.suppress(OSError):
        status = os.stat(f"/proc/{pid}/fd/2")
        return status.st_size if stat.S_ISREG(status.st_mode) else 0
    return 0


def _status(pid: int) -> dict[str, str]:
    lines = (line.partition(":") for line in _read(f"/proc/{pid}/status").splitlines())
    return {name: value.strip() for name, _, value in lines}


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


@contextlib.contextmanager
def put_back(*words: str) -> Iterator[None]:
    """Put processes back when the block ends, or when this process does.

    Args:
        words: "PID" lets a process go on (SIGCONT); "PID:N" sets its soft descriptor limit to N.
    """
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WATCHER, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C of a terminal does not reach it
    )
    assert watcher.stdin is not None
    try:
        yield
    finally:
        watcher.stdin.close()
        watcher.wait(timeout=COMMAND_SECONDS)


@contextlib.contextmanager
def room_for(pid: int, descriptors: int) -> Iterator[int]:
    """Lower the soft descriptor limit of a process to what it has open and ``descriptors`` more.

    Yields:
        The limit.

    Raises:
        OSError: We may not.
    """
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    opened = [int(name) for name in os.listdir(f"/proc/{pid}/fd")]
    # The limit is one above the highest number, not a count.
    limit = max(opened) + 1 + descriptors
    with put_back(f"{pid}:{soft}"):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))
        yield limit


@contextlib.contextmanager
def standing_still(pids: list[int]) -> Iterator[None]:
    """Stop processes, and let them go on when the block ends. One that has ended meanwhile is no error.

    Raises:
        OSError: We may not.
    """
    with put_back(*map(str, pids)):
        for pid in reversed(pids):
            send_signal(pid, signal.SIGSTOP)
        yield


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a process, unless it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@contextlib.asynccontextmanager
async def command(text: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a shell command beside the block, and end what is left of it at the end."""
    process = await asyncio.create_subprocess_exec(
        "/bin/sh",
        "-c",
        text,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def start_service(text: str) -> None:
    """Run a shell command that starts a service, without waiting for it: it may be the service itself."""
    subprocess.Popen(
        ["/bin/sh", "-c", text],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


async def run_command(text: str, seconds: float = COMMAND_SECONDS) -> str:
    """Run a shell command to its end.

    Returns:
        Why it failed, in a few words; "" if it did not.
    """
    async with command(text) as process:
        try:
            async with asyncio.timeout(seconds):
                _, said = await process.communicate()
        except TimeoutError:
            return f"did not return within {seconds:g} s"
    if process.returncode:
        last = said.decode(errors="replace").strip().splitlines()[-1:]
        return f"exit code {process.returncode}" + "".join(f": {line}" for line in last)
    return ""

"""The process behind the listening socket, and the commands that act on it.

Invariants:

- A process that does not have the listening socket open, and is not the parent of one that has, is refused.
- What was changed is put back: a stopped process goes on, and a lowered descriptor limit is raised again. A
  helper process, which survives this one, does that if this one cannot.
- A command has a deadline, at which it is ended with what it started. What it leaves behind when it returns
  stays: it may be the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from greeter.conformance.listening import inodes, owners, processes
from greeter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from greeter.conformance.dial import Dial

COMMAND_SECONDS = 20.0
# How long a stop command may take to send its signal, in seconds. One that has neither sent a signal nor
# returned by then has told the service by other means.
TOLD_SECONDS = 5.0
# The parent of workers is resumed this much before them, in seconds, so that it acts on the signal first.
HEAD_START = 0.25
_STOP_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)
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


def served_by(dials: list[Dial], pid: int) -> list[Dial]:
    """Returns the addresses, those first at which a process, or a child of it, listens.

    Raises:
        ConfigError: It listens at none of them.
    """
    own = []
    for dial in dials:
        with contextlib.suppress(ConfigError):
            serving_pids(dial, pid)
            own.append(dial)
    if not own:
        serving_pids(dials[0], pid)
    return own + [dial for dial in dials if dial not in own]


def serving_pids(dial: Dial, pid: int) -> list[int]:
    """Returns the processes that accept at an address: ``pid``, and its children that have the socket open.

    Raises:
        ConfigError: ``pid`` has nothing to do with the listening socket.
    """
    family = [other for other in processes() if other == pid or parent(other) == pid]
    found = owners(*inodes(dial.family, dial.address, dial.kind), among=family)
    if not found:
        raise ConfigError(f"process {pid} does not listen at the target, nor does a child of it")
    return [pid, *(other for other in found if other != pid)]


def listening_pid(dial: Dial) -> int | None:
    """Returns the process that listens at an address: the parent of the others that do; None if unknown."""
    having = owners(*inodes(dial.family, dial.address, dial.kind))
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


def runnable_seconds(pid: int) -> float:
    """Returns how long the threads of a process ran or waited for a processor, in seconds.

    A process that is never idle has all of the time, however little of it a busy machine let it run. The CPU
    time alone is returned if the kernel does not count the waits (CONFIG_SCHED_INFO).
    """
    total = 0.0
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            ran_and_waited = _read(f"/proc/{pid}/task/{task}/schedstat").split()[:2]
            total += sum(map(int, ran_and_waited)) / 1e9
    if total:
        return total
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
    """Lower the soft descriptor limit of a process, so that it can open ``descriptors`` more.

    Yields:
        The limit.

    Raises:
        OSError: We may not.
    """
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    opened = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    # The limit is one above the highest number, not a count. A new descriptor takes the lowest free number.
    free = (number for number in itertools.count() if number not in opened)
    limit = next(itertools.islice(free, descriptors - 1, None)) + 1
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


@dataclass(slots=True)
class Command:
    """A shell command that runs."""

    process: asyncio.subprocess.Process
    said: IO[bytes]

    async def wait(self) -> str:
        """Wait for its end. Returns why it failed, in a few words; "" if it did not."""
        if not await self.process.wait():
            return ""
        self.said.seek(0)
        lines = self.said.read(65536).decode(errors="replace").strip().splitlines()
        return f"exit code {self.process.returncode}" + "".join(f": {line}" for line in lines[-1:])


@contextlib.asynccontextmanager
async def command(text: str) -> AsyncIterator[Command]:
    """Run a shell command beside the block, and end it if it has not returned by the end."""
    # Not a pipe: a service that the command starts may keep it open.
    with tempfile.TemporaryFile() as said:
        async with _shell(text, said) as process:
            yield Command(process, said)


@contextlib.asynccontextmanager
async def _shell(text: str, stderr: IO[bytes]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        "/bin/sh",
        "-c",
        text,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def resume_when_told(pids: list[int], parent: int, stopping: Command) -> None:
    """Let processes that stand still go on when the command that stops them has reached them.

    Args:
        pids: The processes.
        parent: The one that goes on first.
        stopping: The command.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(TOLD_SECONDS):
            while stopping.process.returncode is None:  # another process tells of no event
                if any(map(_is_told_to_stop, pids)):
                    break
                await asyncio.sleep(0.01)
    if not any(map(_is_told_to_stop, pids)):  # another process may be about to do it
        await asyncio.sleep(HEAD_START)
    for pid in pids:
        send_signal(pid, signal.SIGCONT)
        await asyncio.sleep(HEAD_START if pid == parent else 0.0)


def _is_told_to_stop(pid: int) -> bool:
    """Return True if a signal that stops a service is pending for the process (proc_pid_status(5))."""
    status = _status(pid)
    pending = int(status.get("SigPnd", "0"), 16) | int(status.get("ShdPnd", "0"), 16)
    return any(pending >> (number - 1) & 1 for number in _STOP_SIGNALS)


def start_service(text: str) -> None:
    """Run a shell command that starts a service, without waiting for it: it may be the service itself."""
    subprocess.run(
        ["/bin/sh", "-c", '/bin/sh -c "$1" &', "sh", text],  # it becomes a child of the first process
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        check=False,
    )


async def run_command(text: str, seconds: float = COMMAND_SECONDS) -> str:
    """Run a shell command to its end.

    Returns:
        Why it failed, in a few words; "" if it did not.
    """
    async with command(text) as running:
        try:
            async with asyncio.timeout(seconds):
                return await running.wait()
        except TimeoutError:
            return f"did not return within {seconds:g} s"

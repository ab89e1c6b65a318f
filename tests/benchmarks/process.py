"""A process that was started here: where it runs, what it has used, and its end.

Invariants:
- What is measured has a processor to itself, the first usable one; the load and this program have the second.
- Only what was started here is ever stopped here.

The figures are the kernel's own (proc(5)): run time in nanoseconds from ``schedstat`` where there is one,
else from ``stat`` in ticks; a process counts with its descendants and all their threads.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parent.parent.parent
PROC = Path("/proc")

# A server that has done nothing for so long has finished what a round gave it to do; it is longer than
# log lines wait for company.
QUIET_SECONDS = 0.12
# Patience with whatever starts, settles or stops.
PATIENCE = 10.0

_TICKS = os.sysconf("SC_CLK_TCK")


def environment() -> dict[str, str]:
    """Ours, without what would change how the interpreter or greeter behaves."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "GREETER_")) or name in ("PYTHONPATH", "PYTHONHOME")
    }


class WouldNotStart(Exception):
    """A process that ended, or did not listen in time; its last words are in the message."""


def processors() -> tuple[int | None, int | None]:
    """Where to run what is measured, and where the load; None where there is no choice."""
    usable = sorted(os.sched_getaffinity(0))
    return (usable[0], usable[1]) if len(usable) > 1 else (None, None)


@contextlib.contextmanager
def on_processor(number: int | None) -> Iterator[None]:
    """Processes started inside run there: a child inherits the affinity of its parent."""
    if number is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {number})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Process:
    """``argv``, started on ``processor``, with what it prints in the file ``log``."""

    def __init__(self, argv: Sequence[str], log: Path, processor: int | None) -> None:
        self.log = log
        self._terminated = False
        with log.open("wb") as out, on_processor(processor):
            self._child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environment(),
            )

    @cached_property
    def family(self) -> tuple[int, ...]:
        """The process and its descendants, as they were when this was first asked."""
        parents = {}
        for entry in PROC.iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    parents[int(entry.name)] = int(_stat(entry)[1])
        found = [self._child.pid]
        for pid in found:  # grows as we go
            found += [child for child, parent in parents.items() if parent == pid]
        return tuple(found)

    def check(self) -> None:
        """Raises WouldNotStart if it has ended."""
        if (code := self._child.poll()) is not None:
            words = self.log.read_text(errors="replace").strip().splitlines()
            raise WouldNotStart(words[-1] if words else f"it ended with exit code {code}")

    def cpu_seconds(self) -> float:
        """Processor time used so far, user and system."""
        return sum(_cpu_seconds(PROC / str(pid)) for pid in self.family)

    def settled_cpu_seconds(self) -> float:
        """Processor time used once it has come to rest; of a process that does not, after a while."""
        end = time.monotonic() + PATIENCE
        used = self.cpu_seconds()
        while True:
            time.sleep(QUIET_SECONDS)
            before, used = used, self.cpu_seconds()
            if used == before or time.monotonic() > end:
                return used

    def switches(self) -> int:
        """Context switches so far, of every thread: a process that sleeps makes none."""
        texts = (path.read_text() for pid in self.family for path in (PROC / str(pid)).glob("task/*/status"))
        return sum(int(count) for text in texts for count in re.findall(r"ctxt_switches:\s+(\d+)", text))

    def resident_bytes(self) -> int:
        """Resident memory. The roll-up is exact; the figure in ``status`` may lag by some pages."""
        return sum(_resident_bytes(PROC / str(pid)) for pid in self.family)

    def descriptors(self) -> int:
        """How many descriptors are open."""
        return sum(len(list((PROC / str(pid) / "fd").iterdir())) for pid in self.family)

    def terminate(self) -> None:
        """Send SIGTERM once, and do not wait. A second one would make greeter exit without draining."""
        if self._child.poll() is None and not self._terminated:
            self._terminated = True
            self._child.terminate()

    def reload(self) -> None:
        """Send SIGHUP."""
        self._child.send_signal(signal.SIGHUP)

    def wait_for_end(self, seconds: float) -> int | None:
        """Returns its exit code, once it has ended; None if it does not within ``seconds``."""
        try:
            return self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        """End it: by SIGTERM, and by SIGKILL if that is not enough."""
        self.terminate()
        if self._child.poll() is None:
            try:
                self._child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()


def settle(processes: Sequence[Process]) -> None:
    """Wait until all of them have come to rest at the same time, or for a while if they never do."""
    end = time.monotonic() + PATIENCE
    used = [process.cpu_seconds() for process in processes]
    while True:
        time.sleep(QUIET_SECONDS)
        before, used = used, [process.cpu_seconds() for process in processes]
        if used == before or time.monotonic() > end:
            return


@dataclass(frozen=True, slots=True)
class Ended:
    """What a process printed, and the processor time, user and system, of its whole life."""

    output: str
    cpu_seconds: float


def run_to_end(argv: Sequence[str], processor: int | None, patience: float = 120.0) -> Ended:
    """Run ``argv`` on ``processor`` until it ends by itself. Raises WouldNotStart if it fails or is stuck."""
    with on_processor(processor):
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=ROOT, env=environment(), text=True
        )
    assert child.stdout is not None
    stuck = threading.Timer(patience, child.kill)
    stuck.start()
    try:
        with child.stdout as out:
            output = out.read()
        # Not by the Popen object, which would throw away what the kernel says of the child at its end.
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    finally:
        stuck.cancel()
    if child.returncode:
        raise WouldNotStart(f"{' '.join(argv)} ended with status {child.returncode}")
    return Ended(output, used.ru_utime + used.ru_stime)


def _stat(process: Path) -> list[str]:
    """The fields of ``stat`` behind the command's name: state, parent, …"""
    return (process / "stat").read_text().rpartition(")")[2].split()


def _cpu_seconds(process: Path) -> float:
    try:
        tasks = [path.read_text() for path in process.glob("task/*/schedstat")]
    except OSError:  # a kernel without it
        tasks = []
    if tasks:
        return sum(int(task.split()[0]) for task in tasks) / 1e9
    fields = _stat(process)
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _resident_bytes(process: Path) -> int:
    for name, key in (("smaps_rollup", "Rss"), ("status", "VmRSS")):
        with contextlib.suppress(OSError):
            if found := re.search(rf"{key}:\s+(\d+) kB", (process / name).read_text()):
                return int(found[1]) * 1024
    raise OSError(f"{process}: nothing says how much memory it has")

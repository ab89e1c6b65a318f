"""Where and when: the facts without which a figure means nothing.

Invariants:
- What is not known is said to be unknown, and nothing is asked of the network.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import ssl
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import greeter


def facts() -> dict[str, str]:
    """Date, hardware, kernel and what runs on it. nginx and the compiler are found elsewhere."""
    usable = len(os.sched_getaffinity(0))
    cores = os.cpu_count()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{_cpu_model()}, {cores} cores"
        + ("" if usable == cores else f", {usable} of them usable"),
        "kernel": f"{platform.system()} {platform.release()}",
        "load": "{:.2f} {:.2f} {:.2f} (1, 5, 15 minutes, at the start)".format(*os.getloadavg()),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "openssl": f"{ssl.OPENSSL_VERSION} (Python's)",
        "uvloop": _version("uvloop"),
        "greeter": greeter.__version__,
    }


def has_uvloop() -> bool:
    """True if uvloop is installed."""
    return _version("uvloop") != _ABSENT


def compiler() -> str | None:
    """The path of a C compiler: ``$CC``, or the first that is found."""
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        if name and (path := shutil.which(name)):
            return path
    return None


def first_line(*argv: str) -> str:
    """The first line that a program prints, on either stream; "unknown" if there is none."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    return next(iter((done.stdout + done.stderr).splitlines()), "unknown")


_ABSENT = "not installed"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return _ABSENT


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine() or sys.platform


# Other programs empty caches and make connections queue, which costs some servers more than others.
QUIET = 0.1


class Disturbance:
    """How much of the processors went to programs that are not ours, from when this is made."""

    def __init__(self) -> None:
        self._begin = (time.monotonic(), *_busy_and_stolen(), _ours())

    def share(self) -> str:
        """What others used so far, in words. A child of ours counts when it has ended."""
        then, busy, stolen, ours = self._begin
        now_busy, now_stolen = _busy_and_stolen()
        whole = (time.monotonic() - then) * len(os.sched_getaffinity(0)) or 1
        others = max(0.0, now_busy - busy - (_ours() - ours)) / whole
        taken = (now_stolen - stolen) / whole
        words = f"other programs used {others:.0%} of the processors, a hypervisor {taken:.0%}"
        return words + (", which is too much to judge a claim by" if others + taken > QUIET else "")


def _busy_and_stolen() -> tuple[float, float]:
    """Seconds that our processors were busy, and that a hypervisor took from them (proc(5), ``stat``)."""
    tick = os.sysconf("SC_CLK_TCK")
    usable = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    busy = stolen = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in usable:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            busy += user + nice + system + irq + softirq
            stolen += steal
    return busy / tick, stolen / tick


def _ours() -> float:
    """Processor time of this program and of its children that have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in usage)

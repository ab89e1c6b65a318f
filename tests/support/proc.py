"""What /proc tells about processes (proc(5))."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path


def wakeups(pid: int) -> int:
    """How often the threads of a process have waited for something."""
    found = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        for line in Path(f"/proc/{pid}/task/{thread}/status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                found += int(line.split()[1])
    return found


def resident_bytes(pid: int) -> int:
    """The memory that a process occupies."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def connections(pid: int) -> int:
    """How many TCP connections over IPv4 a process has."""
    links = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed since
            links.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(fields[3] != "0A" and f"socket:[{fields[9]}]" in links for fields in sockets)  # 0A: it listens


def state_and_session(pid: int) -> tuple[str, int]:
    """The state of a process, such as ``S``, ``T`` (stopped) or ``Z`` (exited), and its session."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[3])


def session_members(session: int) -> list[int]:
    """The processes of a session, those that have exited and were not waited for included."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and state_and_session(int(name))[1] == session:
                found.append(int(name))
        except (FileNotFoundError, ProcessLookupError):  # it has ended since
            continue
    return sorted(found)

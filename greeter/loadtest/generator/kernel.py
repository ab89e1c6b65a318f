"""What the kernel has to say: its counters of the accept path, and the settings that bear on a test.

The law: figures about a machine are read, not guessed, and what cannot be read is left out. The counters
are those of this network namespace as a whole; they speak about the target when it is on this machine.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from greeter.system.fdlimit import fd_limit

# /proc/net/netstat, all of its TcpExt line. What each is worth saying:
COUNTERS = {
    "ListenOverflows": "connections that found an accept queue full",
    "ListenDrops": "connection attempts that a listener dropped",
    "TCPReqQFullDoCookies": "SYN cookies, because a queue of half-open connections was full",
    "SyncookiesSent": "SYN cookies sent",
    "TCPSynRetrans": "SYN or SYN-ACK segments sent again",
}

_SYSCTLS = (
    "net/core/somaxconn",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/tcp_max_syn_backlog",
    "net/ipv4/tcp_syncookies",
    "net/ipv4/tcp_tw_reuse",
    "net/ipv4/tcp_syn_linear_timeouts",
    "net/ipv4/tcp_congestion_control",
)

_NETSTAT = Path("/proc/net/netstat")
_SYS = Path("/proc/sys")


def counters(path: Path = _NETSTAT) -> dict[str, int]:
    """The counters as they stand; empty where there are none to read."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    # Lines come in pairs: names, then values, each behind the same word.
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        if names.startswith("TcpExt:"):
            found = dict(zip(names.split()[1:], map(int, values.split()[1:]), strict=False))
            return {name: found[name] for name in COUNTERS if name in found}
    return {}


def difference(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """What was counted in between."""
    return {name: after[name] - before[name] for name in before if name in after}


def sysctls(root: Path = _SYS) -> dict[str, str]:
    """The settings of the accept path, by their dotted names."""
    found = {}
    for name in _SYSCTLS:
        try:
            found[name.replace("/", ".")] = " ".join((root / name).read_text().split())
        except OSError:
            continue  # a kernel without it
    return found


def port_range(root: Path = _SYS) -> tuple[int, int] | None:
    """The first and the last port that connect may choose."""
    text = sysctls(root).get("net.ipv4.ip_local_port_range", "").split()
    return (int(text[0]), int(text[1])) if len(text) == 2 else None


def environment(uvloop: str | None) -> dict[str, Any]:
    """Where a test ran; ``uvloop`` is the version of it that the engine ran on, if it did."""
    from greeter import __version__

    return {
        "greeter": __version__,
        "python": platform.python_version(),
        "uvloop": uvloop,
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpus": cpu_count(),
        "open_files": fd_limit(),
        "sysctl": sysctls(),
    }


def cpu_count() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def uvloop_version(loop: object) -> str | None:
    """The version of uvloop if ``loop`` is one of its loops."""
    if type(loop).__module__.split(".")[0] != "uvloop":
        return None
    from importlib.metadata import version

    return version("uvloop")

"""Facts about this machine: the kernel's counters, and settings that affect a test.

Invariants:

- Values are read from the system. What cannot be read is left out.
- The counters are those of the whole network namespace. They describe the target only if it is local.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from greeter.system.fdlimit import fd_limit

# Counters of the line TcpExt in /proc/net/netstat, and what each counts.
COUNTERS = {
    "ListenOverflows": "connections that found an accept queue full",
    "ListenDrops": "connection attempts that a listener dropped",
    "TCPReqQFullDoCookies": "SYN cookies, because a queue of half-open connections was full",
    "SyncookiesSent": "SYN cookies sent",
    "TCPSynRetrans": "SYN or SYN-ACK segments sent again",
}

# Counters of the lines Udp of /proc/net/snmp and Udp6 of /proc/net/snmp6, added up.
UDP_COUNTERS = {
    "RcvbufErrors": "datagrams dropped because a receive buffer was full",
    "SndbufErrors": "datagrams not sent because a send buffer was full",
    "NoPorts": "datagrams to a port where nothing listens",
    "InErrors": "datagrams not delivered, those dropped for a full buffer included",
    "InCsumErrors": "datagrams with a wrong checksum",
}

_SYSCTLS = (
    "net/core/rmem_default",
    "net/core/rmem_max",
    "net/core/somaxconn",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/tcp_max_syn_backlog",
    "net/ipv4/tcp_syncookies",
    "net/ipv4/tcp_tw_reuse",
    "net/ipv4/tcp_syn_linear_timeouts",
    "net/ipv4/tcp_congestion_control",
)

_NETSTAT = Path("/proc/net/netstat")
_SNMP, _SNMP6 = Path("/proc/net/snmp"), Path("/proc/net/snmp6")
_SYS = Path("/proc/sys")


def counters(path: Path = _NETSTAT) -> dict[str, int]:
    """Read COUNTERS. Returns an empty dict on a system without them."""
    found = _pairs(path, "TcpExt:")
    return {name: found[name] for name in COUNTERS if name in found}


def counters_of(*, datagrams: bool) -> dict[str, int]:
    """Read the counters that matter to a load test, over datagrams or over streams."""
    return udp_counters() if datagrams else counters()


def udp_counters(path: Path = _SNMP, path6: Path = _SNMP6) -> dict[str, int]:
    """Read UDP_COUNTERS, of IPv4 and IPv6 together. Returns an empty dict on a system without them."""
    found = _pairs(path, "Udp:")
    try:
        rows = [line.split() for line in path6.read_text().splitlines()]
    except OSError:  # a kernel without IPv6
        rows = []
    six = {row[0].removeprefix("Udp6"): int(row[1]) for row in rows if row[0].startswith("Udp6")}
    return {name: found[name] + six.get(name, 0) for name in UDP_COUNTERS if name in found}


def _pairs(path: Path, prefix: str) -> dict[str, int]:
    """Read a file whose lines come in pairs, names and values, which begin with the same prefix."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        if names.startswith(prefix):
            return dict(zip(names.split()[1:], map(int, values.split()[1:]), strict=False))
    return {}


def difference(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Return by how much each counter has increased, of those in both readings."""
    return {name: after[name] - before[name] for name in before if name in after}


def sysctls(root: Path = _SYS) -> dict[str, str]:
    """Read the sysctls that affect a test. Returns them by their dotted names."""
    found = {}
    for name in _SYSCTLS:
        try:
            found[name.replace("/", ".")] = " ".join((root / name).read_text().split())
        except OSError:
            continue  # this kernel does not have it
    return found


def port_range(root: Path = _SYS) -> tuple[int, int] | None:
    """Return the first and the last local port that connect(2) may choose; None if unknown."""
    text = sysctls(root).get("net.ipv4.ip_local_port_range", "").split()
    return (int(text[0]), int(text[1])) if len(text) == 2 else None


def environment(uvloop: str | None) -> dict[str, Any]:
    """Describe the machine and the software of a run, for its report.

    Args:
        uvloop: the version of uvloop that the engine ran on; None for asyncio.
    """
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
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def uvloop_version(loop: object) -> str | None:
    """Return the version of uvloop if ``loop`` is one of its loops, else None."""
    if type(loop).__module__.split(".")[0] != "uvloop":
        return None
    from importlib.metadata import version

    return version("uvloop")

"""How many processor cores this process may use: its affinity, and the CPU quota of its cgroups.

A container with a quota sees every core of its host. Where the quota is half a core, a process for each core
would only add memory and throttling.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator


def usable_cores(proc: Path = Path("/proc/self")) -> int:
    """Return how many cores this process may use, at least 1. A fraction of a core counts as a core.

    Args:
        proc: The directory of this process in /proc.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(affinity, cpu_quota(proc))))


def cpu_quota(proc: Path = Path("/proc/self")) -> float:
    """Return the CPU quota of the cgroups of this process, in cores; infinity if there is none.

    A quota limits a group together with all groups below it, so the smallest one on the way up counts. It is
    ``cpu.max`` in version 2 (cgroups(7)), ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us`` in version 1.

    Args:
        proc: The directory of this process in /proc.
    """
    try:
        groups = (proc / "cgroup").read_text(errors="surrogateescape")
        mounts = [*_cgroup_mounts((proc / "mountinfo").read_text(errors="surrogateescape"))]
    except OSError:  # no cgroups, or no /proc
        return math.inf
    quotas = [math.inf]
    for line in groups.splitlines():
        _, controllers, group = line.split(":", 2)
        for mount in mounts:
            if mount.controller in controllers.split(","):
                quotas += map(_quota, _up_from(mount, group))
    return min(quotas)


class _Mount(NamedTuple):
    """Where a hierarchy of cgroups is mounted."""

    point: Path
    root: str  # the group that is seen at ``point``
    controller: str  # "cpu", or "" for version 2, whose line in /proc/PID/cgroup names none


def _cgroup_mounts(mountinfo: str) -> Iterator[_Mount]:
    """Find the hierarchies that may have a CPU quota, in the text of /proc/PID/mountinfo (proc(5))."""
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        _, _, _, root, point, *_ = map(_unescape, fields.split(" "))
        kind, _, options = rest.split(" ", 2)
        if kind == "cgroup2":
            yield _Mount(Path(point), root, "")
        elif kind == "cgroup" and "cpu" in options.split(","):
            yield _Mount(Path(point), root, "cpu")


def _unescape(text: str) -> str:
    r"""Return a field of mountinfo as it is: a space in it is written as ``\040``."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _up_from(mount: _Mount, group: str) -> Iterator[Path]:
    """Yield the directory of ``group`` and those of the groups above it, as far as they are mounted."""
    root = mount.root.rstrip("/")
    # A group that is not below the mounted one is not visible, as that of a process outside its namespace.
    below = group[len(root) :] if group.startswith(f"{root}/") and "/.." not in group else ""
    directory = mount.point / below.strip("/")
    yield directory
    while directory != mount.point:
        directory = directory.parent
        yield directory


def _quota(directory: Path) -> float:
    try:
        try:
            quota, period = (directory / "cpu.max").read_text().split()
        except FileNotFoundError:
            quota = (directory / "cpu.cfs_quota_us").read_text()
            period = (directory / "cpu.cfs_period_us").read_text()
        cores = float(quota) / float(period) if quota != "max" else math.inf
    except (OSError, ValueError, ZeroDivisionError):  # the group is gone, or has no controller
        return math.inf
    return cores if cores > 0 else math.inf  # -1: no quota

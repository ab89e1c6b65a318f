"""The ``process_*`` metrics of the whole service: those of prometheus-client, summed over its processes.

By convention (https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics) they describe the
process that is scraped, and dashboards know them by these names. A scrape of this service is about all of its
processes, so they are sums, without a label for each worker: workers are replaced.

Invariants:

- ``process_cpu_seconds_total`` never decreases: the kernel adds the time of a child that has exited to that
  of its parent, when the parent has waited for it (getrusage(2), RUSAGE_CHILDREN).
- ``process_start_time_seconds`` is that of the first process, which lives as long as the service.
- Reading them takes as long with 20,000 connections as with none. ProcessCollector of prometheus-client lists
  the descriptors instead, and a server that serves clients meanwhile stands still for 65 ms then.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import resource
except ImportError:  # pragma: no cover  # not a Unix
    resource = None  # type: ignore[assignment]  # _seconds_of_exited_children() checks for None

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.metrics_core import Metric

_PROC = Path("/proc")
# Each metric, and its help.
_HELP = {
    "virtual_memory_bytes": "Virtual memory size in bytes.",
    "resident_memory_bytes": "Resident memory size in bytes.",
    "start_time_seconds": "Start time of the process since unix epoch in seconds.",
    "cpu_seconds": "Total user and system CPU time spent in seconds.",
    "open_fds": "Number of open file descriptors.",
    "max_fds": "Maximum number of open file descriptors.",
}


# How often to read at most until no child exits meanwhile.
MAX_READS = 5


def process_metrics(processes: Iterable[int | str]) -> Iterator[Metric]:
    """Read the metrics of processes from /proc. Where there is none, there are no metrics.

    Args:
        processes: Process IDs, first "self". A process that has exited counts nothing.
    """
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    pids = [*processes]
    sums: dict[str, float] = {}
    exited = _seconds_of_exited_children()
    for _ in range(MAX_READS):
        sums = _sums(pids)
        before, exited = exited, _seconds_of_exited_children()
        if exited == before:
            break  # else the time of a child that has exited meanwhile may count twice
    if "cpu_seconds" in sums:
        sums["cpu_seconds"] += exited
    for name, value in sums.items():
        family = CounterMetricFamily if name == "cpu_seconds" else GaugeMetricFamily
        yield family(f"process_{name}", _HELP[name], value=value)


def _seconds_of_exited_children() -> float:
    if resource is None:  # pragma: no cover  # not a Unix
        return 0.0
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _sums(processes: Iterable[int | str]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for process in processes:
        try:
            values = _read(_PROC / str(process))
        except OSError:  # it has exited, or there is no /proc
            continue
        for name, value in values.items():
            if name != "start_time_seconds" or name not in sums:
                sums[name] = sums.get(name, 0.0) + value
    return sums


def _read(process: Path) -> dict[str, float]:
    """Return the values of one process, by the names of the metrics (proc(5)).

    Raises:
        OSError: It has exited, or there is no /proc.
    """
    # Behind the command's name, which may contain anything.
    fields = (process / "stat").read_bytes().rpartition(b")")[2].split()
    boot = next(line for line in (_PROC / "stat").read_bytes().splitlines() if line.startswith(b"btime "))
    ticks = os.sysconf("SC_CLK_TCK")
    limits = (process / "limits").read_bytes().splitlines()
    most = next((line.split()[3] for line in limits if line.startswith(b"Max open files")), None)
    if most is None:  # the kernel lists none for a process that ends at this moment (fs/proc/base.c)
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), str(process))
    descriptors = 0
    with contextlib.suppress(OSError):  # a process that is not waited for yet has none, but has used CPU time
        # The size of the directory is the number of descriptors, since Linux 6.2.
        descriptors = os.stat(process / "fd").st_size or len(os.listdir(process / "fd"))
    return {
        "virtual_memory_bytes": float(fields[20]),
        "resident_memory_bytes": float(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        "start_time_seconds": float(boot.split()[1]) + float(fields[19]) / ticks,
        "cpu_seconds": (float(fields[11]) + float(fields[12])) / ticks,
        "open_fds": float(descriptors),
        "max_fds": float("inf") if most == b"unlimited" else float(most),
    }

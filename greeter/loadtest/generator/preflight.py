"""Checks before a run: raise the limit of open files, and compare the plan with the limits of the machine.

Invariants:

- A limit that would invalidate the run is reported here with its number, before any connection is started.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from greeter.loadtest.generator import kernel
from greeter.loadtest.plan.plan import PlanError
from greeter.loadtest.plan.units import number
from greeter.system.fdlimit import fd_limit, raise_fd_limit

if TYPE_CHECKING:
    from greeter.loadtest.generator.target import Target
    from greeter.loadtest.plan.plan import LoadPlan

# Descriptors that a process needs besides its connections: standard streams, the event loop, a live display.
FD_RESERVE = 32

# The side that closes first keeps its port in TIME_WAIT for 60 s, or 1 s if tcp_tw_reuse applies (ip-sysctl).
_TIME_WAIT_SECONDS = 60


def preflight(
    plan: LoadPlan, target: Target, *, in_process: bool = True, index: int | None = None
) -> list[str]:
    """Raise the limit of open files as far as the plan needs, and check the plan against the local ports.

    Args:
        plan: the plan to run.
        target: its resolved target.
        in_process: True if this process makes the connections, False if new worker processes do.
        index: the number of the worker that runs here, if the others may run on other machines. Default: all
            run here and share its ports.

    Returns:
        Notes for the report.

    Raises:
        PlanError: the plan needs more open files than the hard limit, or more local ports than there are.
    """
    notes = ensure_fd_limit(plan.slots, plan.workers, already_open=_open_fd_count() if in_process else 0)
    if not isinstance(target.address, str):
        notes += port_notes(plan, target, index)
    if target.alternatives:
        several = f"{plan.endpoint.host} has {target.alternatives + 1} addresses"
        notes.append(f"{several}: all connections went to {target.text}")
    return notes


def ensure_fd_limit(connections: int, workers: int, already_open: int) -> list[str]:
    """Raise the soft limit of open files as far as the connections need.

    Args:
        connections: the maximum of open connections, shared by ``workers``.
        workers: the number of processes.
        already_open: the descriptors that each process has open already.

    Returns:
        Notes for the report.

    Raises:
        PlanError: the hard limit is too low.
    """
    share = -(-connections // workers)
    need = share + already_open + FD_RESERVE
    before = fd_limit()
    if before is None or need <= before:
        return []
    limit = raise_fd_limit()
    if limit is not None and need > limit:
        fit = max(0, limit - already_open - FD_RESERVE)
        enough = -(-connections // max(1, fit))
        raise PlanError(
            f"{connections} connections do not fit: the limit of {limit} open files (ulimit -n) "
            f"allows {fit * workers} with {workers} worker{'s' * (workers > 1)}: "
            f"{{workers}} {enough} is enough"
        )
    return [f"raised the limit of open files from {before} to {limit or 'none'}"]


def port_notes(plan: LoadPlan, target: Target, index: int | None = None) -> list[str]:
    """Check that there are enough local ports, for the open connections and for the rate.

    Args:
        plan: the plan to run.
        target: its resolved target, a TCP address.
        index: as in ``preflight``.

    Returns:
        A note for the report if they will run out, or if connect(2) will be slow.

    Raises:
        PlanError: more connections are to be held than there are ports.
    """
    ports = kernel.port_range()
    if ports is None:
        return []
    each = ports[1] - ports[0] + 1
    sources = max(1, len(plan.source_ips))
    available = each * sources
    which = f"{number(available)} ports of {ports[0]}-{ports[1]}" + f" on {sources} addresses" * (sources > 1)
    slots = plan.slots if index is None else plan.share(index)
    enough = -(-slots // (each // 2))
    if plan.hold and slots > available:
        raise PlanError(
            f"{slots} connections to hold do not fit: there are {which} "
            f"(net.ipv4.ip_local_port_range): {enough} addresses of {{source_ips}} are enough"
        )
    if slots > available:
        return [f"{number(slots)} connections share {which}: the rest will be local_exhausted"]
    notes = []
    if plan.hold and slots > available // 2:
        notes.append(
            f"{number(slots)} connections take more than half of {which}: connect(2) is slow then, and "
            f"{enough} source addresses are enough"
        )
    rate = max((plan.rate or 0.0, *(stage.rate for stage in plan.stages)))
    if index is not None:
        rate /= plan.workers
    # With until="eof", the server closes first, and the ports in TIME_WAIT are those of the server.
    if plan.ending.kind == "eof" or not rate:
        return notes
    reuse = kernel.sysctls().get("net.ipv4.tcp_tw_reuse")
    time_wait = 1 if reuse == "1" or (reuse == "2" and target.loopback) else _TIME_WAIT_SECONDS
    if rate * time_wait > available:
        notes.append(
            f"{number(rate)}/s use up {which} in {available / rate:.1f} s, and each stays in TIME_WAIT for "
            f"{time_wait} s, because this side closes first: add source addresses"
        )
    return notes


def _open_fd_count() -> int:
    """Return the number of descriptors that this process has open."""
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return 0

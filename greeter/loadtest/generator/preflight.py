"""Before anything starts: make room for the plan, refuse what cannot fit, warn of what will run short.

The law: a limit that would spoil the run is found here and named with its number, not by ten thousand
``local_exhausted`` afterwards.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from greeter.errors import ConfigError
from greeter.loadtest.generator import kernel
from greeter.loadtest.plan.units import number
from greeter.system.fdlimit import fd_limit, raise_fd_limit

if TYPE_CHECKING:
    from greeter.loadtest.generator.target import Target
    from greeter.loadtest.plan.plan import LoadPlan

# A process has some descriptors of its own: standard streams, the loop's, those of a live display.
FD_RESERVE = 32

# The side that closes first keeps its port in TIME_WAIT: 60 s, or 1 s where tcp_tw_reuse lets it go.
_TIME_WAIT_SECONDS = 60


def preflight(plan: LoadPlan, target: Target, *, in_process: bool = True) -> list[str]:
    """Raise the limit of open files as far as the plan needs it; returns what is worth telling.

    ``in_process`` says that the connections are to be this process's own. Raises ConfigError when the
    plan does not fit.
    """
    notes = ensure_fd_limit(plan.slots, plan.workers, taken=_open_fd_count() if in_process else 0)
    if not isinstance(target.address, str):
        notes += port_notes(plan, target)
    return notes


def ensure_fd_limit(connections: int, workers: int, taken: int) -> list[str]:
    """Raise the soft limit of open files so that each of ``workers`` processes can hold its share.

    ``taken`` is what a process has open already. Raises ConfigError when the hard limit is too low.
    """
    share = -(-connections // workers)
    need = share + taken + FD_RESERVE
    before = fd_limit()
    if before is None or need <= before:
        return []
    limit = raise_fd_limit()
    if limit is not None and need > limit:
        fit = max(0, limit - taken - FD_RESERVE) * workers
        raise ConfigError(
            f"{connections} connections do not fit: the limit of {limit} open files (ulimit -n) "
            f"leaves room for {fit} with {workers} worker{'s' * (workers > 1)}"
        )
    return [f"raised the limit of open files from {before} to {limit or 'none'}"]


def port_notes(plan: LoadPlan, target: Target) -> list[str]:
    """Whether there are ports enough, for what is open at once and for the rate."""
    ports = kernel.port_range()
    if ports is None:
        return []
    sources = max(1, len(plan.source_ips))
    have = (ports[1] - ports[0] + 1) * sources
    which = f"{number(have)} ports of {ports[0]}-{ports[1]}" + f" on {sources} addresses" * (sources > 1)
    if plan.slots > have:
        return [f"{number(plan.slots)} connections share {which}: the rest will be local_exhausted"]
    rate = max((plan.rate or 0.0, *(stage.rate for stage in plan.stages)))
    # The server closes first, unless we do not wait for it to.
    if plan.until == "eof" or not rate:
        return []
    reuse = kernel.sysctls().get("net.ipv4.tcp_tw_reuse")
    kept = 1 if reuse == "1" or (reuse == "2" and target.loopback) else _TIME_WAIT_SECONDS
    if rate * kept <= have:
        return []
    return [
        f"{number(rate)}/s use up {which} in {have / rate:.1f} s, and each rests {kept} s in TIME_WAIT, "
        "because this side closes first: add source addresses"
    ]


def _open_fd_count() -> int:
    """How many descriptors this process has open."""
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return 0

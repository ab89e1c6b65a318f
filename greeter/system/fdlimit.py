"""How many descriptors this process may have, and more of them where the system lets us.

The law: a connection is a descriptor, so the limit is known and raised before the first one is opened.
"""

from __future__ import annotations

import os

try:
    import resource
except ImportError:  # pragma: no cover  # not a Unix
    resource = None  # type: ignore[assignment]  # its absence is looked for below


def raise_fd_limit() -> int | None:
    """Raise the soft limit to the hard one; returns what is in force, None if there is no limit."""
    if resource is None:  # pragma: no cover  # not a Unix
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError):  # macOS says "unlimited" and means something else
            pass
    return None if soft == resource.RLIM_INFINITY else soft


# Descriptors that stay free for whatever else the process does: logs, names to resolve, a metrics scrape.
RESERVE = 12
# asyncio accepts eight at a time, and may do so twice before it hears that it is to pause.
OVERSHOOT = 16


def connection_capacity(listeners: int) -> int:
    """How many connections the descriptor limit allows a server with so many listeners, right now."""
    limit = fd_limit()
    if limit is None:
        return 1_000_000
    try:
        taken = len(os.listdir("/proc/self/fd"))
    except OSError:  # no /proc: assume a small process
        taken = 16
    return max(1, limit - taken - RESERVE - OVERSHOOT * listeners)


def fd_limit() -> int | None:
    """The soft limit as it is; None if there is none."""
    if resource is None:  # pragma: no cover  # not a Unix
        return None
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft

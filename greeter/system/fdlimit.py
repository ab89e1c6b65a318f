"""The limit on open descriptors (RLIMIT_NOFILE): raising it, and how many connections it allows.

Invariants:

- Every connection needs one descriptor, so the limit is raised and read before the first one is accepted.
"""

from __future__ import annotations

import os

try:
    import resource
except ImportError:  # pragma: no cover  # not a Unix
    resource = None  # type: ignore[assignment]  # the functions below check for None


def raise_fd_limit() -> int | None:
    """Raise the soft limit to the hard limit.

    Returns:
        The soft limit in force, or None if there is none.
    """
    if resource is None:  # pragma: no cover  # not a Unix
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError):  # macOS reports an unlimited hard limit but rejects it
            pass
    return None if soft == resource.RLIM_INFINITY else soft


# Descriptors to keep free for other uses of the process: logs, name resolution, and at most 16 connections of
# the HTTP server of --metrics.
RESERVE = 20
# Connections per listener that an event loop may accept before a pause takes effect: twice asyncio's batch of
# eight. With many listeners, not all of them have as many in their queues at that moment.
OVERSHOOT = 16


def connection_capacity(accepted_by_loop: int = 0) -> int:
    """Return how many connections the descriptor limit allows, given what is open now.

    Args:
        accepted_by_loop: The number of listening sockets that the event loop accepts from. Each needs a
            duplicate, and more descriptors in reserve, up to half of all. Accepting by hand needs neither.

    Returns:
        The number of connections, at least 1.
    """
    limit = fd_limit()
    if limit is None:
        return 1_000_000
    try:
        taken = len(os.listdir("/proc/self/fd"))
    except OSError:  # no /proc: assume a small process
        taken = 16
    left = limit - taken - RESERVE - accepted_by_loop
    return max(1, left - min(OVERSHOOT * accepted_by_loop, left // 2))


def fd_limit() -> int | None:
    """Return the soft limit, or None if there is none."""
    if resource is None:  # pragma: no cover  # not a Unix
        return None
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft

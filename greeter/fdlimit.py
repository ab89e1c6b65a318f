"""How many descriptors this process may have, and more of them where the system lets us.

The law: a connection is a descriptor, so the limit is known and raised before the first one is opened.
"""

from __future__ import annotations

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

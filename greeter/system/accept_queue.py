"""The length that the kernel allows an accept queue."""

from __future__ import annotations

from pathlib import Path

SOMAXCONN = Path("/proc/sys/net/core/somaxconn")


def longest_accept_queue() -> int | None:
    """Return ``net.core.somaxconn``, to which listen(2) silently shortens a longer backlog.

    It belongs to the network namespace. It was 128 before Linux 5.4, and is 4096 since.

    Returns:
        The number of connections, or None if the system does not tell.
    """
    try:
        return int(SOMAXCONN.read_text())
    except (OSError, ValueError):
        return None

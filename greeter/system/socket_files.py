"""The files of Unix sockets: which one is stale, and which one belongs to a live service.

Invariants:

- The socket of a live service is never removed, also if that is about to listen.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import time

# How long a Unix socket may be bound before it listens, in seconds.
BIND_TO_LISTEN = 0.02


def remove_stale(path: str) -> None:
    """Remove a socket file that no process listens on.

    Raises:
        FileExistsError: The file is not a socket.
        OSError: A process listens on it (EADDRINUSE), or it cannot be removed.
    """
    before = file_id(path)
    if before is None:
        return
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    if _is_live(path):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    time.sleep(BIND_TO_LISTEN)  # a service that starts at this moment has bound the socket and listens next
    if _is_live(path):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    if file_id(path) == before:  # still the same file
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _is_live(path: str) -> bool:
    """Return True if a process listens on the Unix socket ``path``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            pass  # its accept queue is full, so it is in use
    return True


def file_id(path: str) -> tuple[int, int] | None:
    """Return the device and inode of the file at ``path``, or None if there is none."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino

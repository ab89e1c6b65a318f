"""The files of Unix sockets: which one is stale, and which one belongs to a live service.

Invariants:

- The socket of a live service is never removed, also if that is about to listen. Between bind(2) and
  listen(2), a socket refuses connections as a stale one does, so services that start in one directory take
  turns.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# How long to wait for the turn in a directory, in seconds. A service has it for less than a millisecond; a
# wrapper such as flock(1) may have it for as long as it likes.
TURN_TIMEOUT = 1.0
_RETRY_SECONDS = 0.005


@contextlib.contextmanager
def turn_in_directory(path: str) -> Iterator[None]:
    """Let no other service replace or open a socket file in the directory of ``path`` inside the block.

    It is best effort, by flock(2) on the directory: some file systems have no locks. Blocks.

    Args:
        path: The path of a socket file.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ImportError):  # the directory is not readable, or not there
            import fcntl  # not on Windows

            directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, directory)
            end = time.monotonic() + TURN_TIMEOUT
            while True:
                try:
                    fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        break
                    time.sleep(_RETRY_SECONDS)
        yield


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

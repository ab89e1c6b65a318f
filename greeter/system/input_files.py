"""Files that a service reads at its start and at every reload: configuration, greeting, certificates.

Invariants:

- What is not a regular file (a pipe, a FIFO, ``/dev/stdin``, ``<(command)`` of a shell) can be read only
  once. So its contents are kept: reading it again would find it empty, or wait for a writer forever.
- A copy has no name. It ends with its last descriptor, and with the process in any case.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from greeter.system.anonymous_file import open_anonymous_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    Path = str | os.PathLike[str]

# What a file may have, in bytes: a device such as /dev/zero never ends.
MAX_INPUT = 256 * 1024 * 1024

# The contents of the files that can be read only once, by path, with the device and inode that the path had.
_kept: dict[str, tuple[tuple[int, int], bytes]] = {}


def read_input(path: Path) -> bytes:
    """Return the current contents of a file, or those of the first call if it can be read only once.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be read.
    """
    if (kept := _contents_kept(path)) is not None:
        return kept
    with open(path, "rb") as file:
        data = file.read(MAX_INPUT + 1)
        found = os.fstat(file.fileno())
    if len(data) > MAX_INPUT:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    if not stat.S_ISREG(found.st_mode):
        _kept[os.fspath(path)] = (found.st_dev, found.st_ino), data
    return data


def _contents_kept(path: Path) -> bytes | None:
    """Return what is kept of ``path``; None if nothing is, or if the path now leads to another file."""
    if (kept := _kept.get(os.fspath(path))) is None:
        return None
    with contextlib.suppress(OSError):  # it is gone
        found = os.stat(path)
        if (found.st_dev, found.st_ino) != kept[0]:
            return None
    return kept[1]


def inputs_read_once() -> tuple[str, ...]:
    """Return the paths whose contents ``read_input`` keeps, because they can be read only once."""
    return tuple(_kept)


def open_copy(path: Path) -> int:
    """Return a descriptor of a file with the contents that ``read_input`` returns.

    Args:
        path: The file.

    Returns:
        A descriptor of a copy in memory, which the caller closes. Where memfd_create(2) is denied, it is one
        of the file itself, so that no key is copied to a disk; what can be read only once is copied to a
        temporary file without a name.

    Raises:
        OSError: The file cannot be read, or no copy can be made.
    """
    data = read_input(path)
    if _contents_kept(path) is None and not _has_memfd():
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with open_anonymous_file("input") as file:
        file.write(data)
        file.flush()
        return os.dup(file.fileno())


def _has_memfd() -> bool:
    """Return True if memfd_create(2) exists and no seccomp filter denies it, as systemd.exec(5) advises."""
    try:
        os.close(os.memfd_create("greeter-probe"))
    except (AttributeError, OSError):
        return False
    return True


def path_of(fd: int) -> str:
    """Return a path that opens the file of a descriptor anew, from its start (proc(5))."""
    return f"/proc/self/fd/{fd}"


@contextlib.contextmanager
def reopenable(path: Path) -> Iterator[Path]:
    """Provide a path that a library can open any number of times, with the contents of ``path``.

    Args:
        path: The file.

    Returns:
        A context manager of ``path`` itself, or of the path of a copy that exists inside the block.

    Raises:
        OSError: The file cannot be read, or no copy can be made.
    """
    read_input(path)
    if _contents_kept(path) is None:
        yield path
        return
    fd = open_copy(path)
    try:
        yield path_of(fd)
    finally:
        os.close(fd)

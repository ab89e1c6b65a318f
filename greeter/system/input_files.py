"""Files that a service reads at its start and at every reload: configuration, greeting, certificates.

Invariants:

- What is not a regular file (a pipe, a FIFO, ``/dev/stdin``, ``<(command)`` of a shell) can be read only
  once. So its contents are kept: reading it again would find it empty, or wait for a writer forever.
- A copy has no name. It ends with its last descriptor, and with the process in any case.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    Path = str | os.PathLike[str]

_kept: dict[str, bytes] = {}


def read_input(path: Path) -> bytes:
    """Return the current contents of a file, or those of the first call if it can be read only once.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be read.
    """
    name = os.fspath(path)
    if name in _kept:
        return _kept[name]
    with open(path, "rb") as file:
        data = file.read()
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            _kept[name] = data
    return data


def inputs_read_once() -> tuple[str, ...]:
    """Return the paths whose contents ``read_input`` keeps, because they can be read only once."""
    return tuple(_kept)


def open_copy(path: Path) -> int:
    """Return a descriptor of a file with the contents that ``read_input`` returns.

    Args:
        path: The file.

    Returns:
        A descriptor of a copy, in memory where memfd_create(2) is permitted. Where it is not, one of the file
        itself; or, if that can be read only once, of a temporary file without a name. The caller closes it.

    Raises:
        OSError: The file cannot be read, or no copy can be made.
    """
    data = read_input(path)
    try:
        fd = os.memfd_create("greeter-input")
    except (AttributeError, OSError):  # not Linux; a seccomp filter, which systemd.exec(5) advises
        if os.fspath(path) not in _kept:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with tempfile.TemporaryFile(buffering=0) as file:
            fd = os.dup(file.fileno())
    try:
        with open(fd, "wb", closefd=False) as copy:
            copy.write(data)
    except BaseException:
        os.close(fd)
        raise
    return fd


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
    if os.fspath(path) not in _kept:
        yield path
        return
    fd = open_copy(path)
    try:
        yield path_of(fd)
    finally:
        os.close(fd)

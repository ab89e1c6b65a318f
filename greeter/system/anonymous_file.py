"""Files without a name, and memory that processes share through one.

``multiprocessing.shared_memory`` is not used: it starts a tracker process, and leaves a named file behind if
that process is killed.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import BinaryIO, cast

WORD = 8  # bytes


def open_anonymous_file(name: str) -> BinaryIO:
    """Open an empty file without a name, for reading and writing.

    It is a memfd, or a temporary file where the system denies memfd_create(2), as some sandboxes do.

    Args:
        name: A name for debugging, which /proc shows.

    Returns:
        The file. Its contents are gone when the last descriptor and mapping of it are.

    Raises:
        OSError: The system has no descriptor for it, or no directory for temporary files.
    """
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):
            return open(os.memfd_create(name), "w+b")
    import tempfile

    return cast("BinaryIO", tempfile.TemporaryFile(prefix=f"greeter-{name}-"))


def open_shared_words(count: int) -> tuple[BinaryIO, memoryview[int]]:
    """Make memory that can be shared with a child process.

    Args:
        count: Its length in words of 64 bits.

    Returns:
        The file whose descriptor the child gets, and the words, all 0. The words stay when the file is
        closed.

    Raises:
        OSError: As ``open_anonymous_file``, or there is no space for it.
    """
    file = open_anonymous_file("counters")
    try:
        # Written, not truncated to its length: a page without space behind it would be a SIGBUS later.
        file.write(bytes(count * WORD))
        file.flush()
        return file, map_shared_words(file.fileno(), count)
    except BaseException:
        file.close()
        raise


def map_shared_words(fd: int, count: int) -> memoryview[int]:
    """Return the words of memory that ``open_shared_words`` has made, perhaps in another process.

    Each word is aligned, so that it is read and written as a whole.

    Args:
        fd: The descriptor of its file, which may be closed afterwards.
        count: Its length in words.

    Raises:
        OSError: It is another kind of file.
        ValueError: The file is shorter.
    """
    return memoryview(mmap.mmap(fd, count * WORD)).cast("q")

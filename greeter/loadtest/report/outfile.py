"""Write result files atomically.

Invariants:

- A reader never sees a partial file. The data is written to a temporary file in the same directory, synced,
  and renamed. On any failure the previous file remains.
- A pipe, a device or the file that stdout is redirected to is never replaced. It is appended to.
- ``-`` is standard output, like ``/dev/stdout``.
"""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from greeter.errors import GreeterError, os_error_text


class WriteFailed(GreeterError, OSError):
    """A result could not be written; no partial file is left. ``errno`` is that of the system call."""

    def __init__(self, path: str, cause: OSError) -> None:
        super().__init__(f"cannot write {path}: {os_error_text(cause)}")
        self.path, self.errno, self.strerror = path, cause.errno, cause.strerror


def write(path: str | Path, text: str) -> None:
    """Write a text file atomically.

    A path that is not a regular file (a pipe, a device) or refers to a descriptor (``/dev/stdout``,
    ``/dev/fd/3``) is appended to instead.

    Args:
        path: where to write.
        text: written as UTF-8. Characters without an encoding are written as Python escapes.

    Raises:
        WriteFailed: the file cannot be written.
    """
    path, data = Path(path), text.encode("utf-8", "backslashreplace")
    try:
        if (stream := _stream(path)) is None:
            _replace(path.resolve(), data)  # follow a symbolic link rather than replace it
        else:
            # Append, so that a log that stdout is redirected to keeps its lines.
            with open(stream, "ab", closefd=isinstance(stream, Path)) as file:
                file.write(data)
    except OSError as error:
        raise WriteFailed(str(path), error) from error


def check(path: str | Path) -> None:
    """Check that ``path`` is writable, as far as that is known without writing it.

    Raises:
        WriteFailed: the file cannot be written.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if _stream(path) is None:
            with tempfile.TemporaryFile(dir=path.resolve().parent):
                pass
    except OSError as error:
        raise WriteFailed(str(path), error) from error


def is_stdout(path: str | Path) -> bool:
    """Return True for a name of standard output, and for the regular file that it is redirected to."""
    if str(path) in ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
        return True
    with suppress(OSError):  # no such file, or stdout is closed
        return Path(path).is_file() and os.path.samestat(os.stat(path), os.fstat(1))
    return False


def _stream(path: Path) -> int | Path | None:
    """Return what to open for a path that must not be replaced; None for a regular or a new file."""
    if str(path) == "-":
        return 1
    if not path.exists():
        return None
    for number in (1, 2):
        with suppress(OSError):  # one of them may be closed
            if os.path.samestat(path.stat(), os.fstat(number)):
                return number
    return path if not path.is_file() or path.parent.resolve().is_relative_to("/proc") else None


def _replace(place: Path, data: bytes) -> None:
    """Write ``data`` to a temporary file and rename it to ``place``; on failure, remove the former."""
    handle, temporary = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode(place))
        os.replace(temporary, place)
    except BaseException:  # also KeyboardInterrupt
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _mode(place: Path) -> int:
    """Return the permissions of the replaced file, or those of a new one; mkstemp sets 0600."""
    if place.exists():
        return place.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask

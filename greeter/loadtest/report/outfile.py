"""Files that are either written or not there.

The law: a reader never sees half a file. It is written beside its place, brought to the disk, and then
put in place by a rename; when anything fails on the way, what was there before is there still. What
others hold open (a pipe, a device, the log that stdout goes to) is never replaced, but written to.
"""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from greeter.errors import GreeterError, reason


class WriteFailed(GreeterError, OSError):
    """A result could not be written; nothing of it is left. ``errno`` is the system's."""

    def __init__(self, path: str, cause: OSError) -> None:
        super().__init__(f"cannot write {path}: {reason(cause)}")
        self.path, self.errno, self.strerror = path, cause.errno, cause.strerror


def write(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path``, in one step as far as anybody can see. Raises WriteFailed.

    What is no regular file (a pipe, a device) is written to as it is, and so is what a descriptor stands
    for (``/dev/stdout``, ``/dev/fd/3``). What UTF-8 has no letter for is written as Python escapes it.
    """
    path, data = Path(path), text.encode("utf-8", "backslashreplace")
    try:
        if (stream := _stream(path)) is None:
            _replace(path.resolve(), data)  # behind a symbolic link, so that the link stays
        else:
            # A log that stdout goes to keeps what it has.
            with open(stream, "ab", closefd=isinstance(stream, Path)) as file:
                file.write(data)
    except OSError as error:
        raise WriteFailed(str(path), error) from error


def check(path: str | Path) -> None:
    """See that ``path`` can be written, as far as one can tell without doing so. Raises WriteFailed."""
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if _stream(path) is None:
            with tempfile.TemporaryFile(dir=path.resolve().parent):
                pass
    except OSError as error:
        raise WriteFailed(str(path), error) from error


def _stream(path: Path) -> int | Path | None:
    """What to open for a path that must not be replaced; None for a file, or a place for one."""
    if not path.exists():
        return None
    for number in (1, 2):
        with suppress(OSError):  # one of them may be closed
            if os.path.samestat(path.stat(), os.fstat(number)):
                return number
    return path if not path.is_file() or path.parent.resolve().is_relative_to("/proc") else None


def _replace(place: Path, data: bytes) -> None:
    """Write ``data`` beside ``place`` and put it there; when that fails, nothing is left beside it."""
    handle, beside = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, _mode(place))
        os.replace(beside, place)
    except BaseException:  # Ctrl-C is none of the errors
        with suppress(FileNotFoundError):
            os.unlink(beside)
        raise


def _mode(place: Path) -> int:
    """The permissions of the file that is replaced, or of a new one; mkstemp's are for its owner alone."""
    if place.exists():
        return place.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask

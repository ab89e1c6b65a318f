"""Files that are either written or not there.

The law: a reader never sees half a file. It is written beside its place, brought to the disk, and then
put in place by a rename; when anything fails on the way, what was there before is there still.
"""

from __future__ import annotations

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

    What is no regular file (``/dev/stdout``, a pipe) is written to as it is.
    """
    path = Path(path)
    beside = None
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        place = path.resolve()  # behind a symbolic link, so that the link stays
        handle, beside = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, _mode(place))
        os.replace(beside, place)
    except OSError as error:
        if beside is not None:
            with suppress(FileNotFoundError):
                os.unlink(beside)
        raise WriteFailed(str(path), error) from error


def _mode(place: Path) -> int:
    """The permissions of the file that is replaced, or of a new one; mkstemp's are for its owner alone."""
    if place.exists():
        return place.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask

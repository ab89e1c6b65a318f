"""The test's view of the memory that it shares with a process under faults.c: what fails, and what has."""

from __future__ import annotations

import errno
import mmap
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Plan:
    """The plans of faults.c, by the names that it gives them.

    Args:
        path: The file FAULTS_FILE, which the process has opened already.
    """

    ENTRY = struct.Struct("20s6i")  # struct plan
    SKIP, LEFT, ERROR, PART, DELIVERED, SEEN = range(6)

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._file = mmap.mmap(file.fileno(), 0)
        names = [entry[0].rstrip(b"\0").decode() for entry in self.ENTRY.iter_unpack(self._file[:])]
        self._offset = {name: number * self.ENTRY.size + 20 for number, name in enumerate(names)}

    def close(self) -> None:
        self._file.close()

    def _get(self, call: str, field: int) -> int:
        return int(struct.unpack_from("i", self._file, self._offset[call] + 4 * field)[0])

    def _set(self, call: str, field: int, value: int) -> None:
        struct.pack_into("i", self._file, self._offset[call] + 4 * field, value)

    def arm(self, call: str, error: str, count: int, *, skip: int = 0, part: int = 0) -> None:
        """Let ``count`` calls fail after the next ``skip``; the first takes ``part`` bytes, if any.

        Args:
            call: The name of a plan: a call of a stream or without a descriptor, as in ``"send"``, or of
                another kind of descriptor, as in ``"send.udp"``.
            error: The name of the error.
            count: How many calls fail.
            skip: How many calls succeed before.
            part: How many bytes the first of them sends instead of failing.
        """
        self._set(call, self.DELIVERED, 0)
        self._set(call, self.SKIP, skip)
        self._set(call, self.ERROR, getattr(errno, error))
        self._set(call, self.PART, part)
        self._set(call, self.LEFT, count)  # last, because it arms the fault

    def disarm(self, call: str) -> None:
        self._set(call, self.LEFT, 0)

    def delivered(self, call: str) -> int:
        """How many calls have failed since ``arm``."""
        return self._get(call, self.DELIVERED)

    def seen(self) -> dict[str, int]:
        """How often each call was made, of those that were, if the process was started with FAULTS_COUNT."""
        return {name: count for name in self._offset if (count := self._get(name, self.SEEN))}

"""Descriptors 0 to 2 that were closed when the process was started, as with ``<&-`` in a shell.

Invariants:

- After ``occupy_standard_streams()``, no socket and no event loop gets one of these descriptors. So what
  writes to stdout or stderr cannot write to a client, and libuv does not abort when it closes a descriptor of
  its own.
"""

import os
import sys


def occupy_standard_streams() -> None:
    """Open /dev/null as each of the descriptors 0 to 2 that is closed. Child processes inherit it.

    Python has no ``sys.stdout`` where the descriptor is closed; it gets one.
    """
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:  # EBADF; open(2) returns the lowest free descriptor, which is this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, "w" if fd else "r", closefd=False))  # noqa: SIM115  # it stays

"""What systemd hands to a service and hears from it: sockets, readiness, status, watchdog.

The law: whoever reads the variables of the environment takes them out, so that no child takes itself for
the service. What is handed over wrongly is an error at start; telling systemd is best effort, for ever:
it never raises, never blocks and complains once per outage.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import TYPE_CHECKING

from greeter.errors import ConfigError, reason

if TYPE_CHECKING:
    from collections.abc import MutableMapping

logger = logging.getLogger("greeter")

FIRST_FD = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)
_UNNAMED = "unknown"  # what sd_listen_fds_with_names(3) calls a socket without a name


def listen_fds(environ: MutableMapping[str, str] = os.environ) -> dict[int, str]:
    """The descriptors that systemd passed to this process, and their names; none if it passed none.

    They are not for our children: close-on-exec is set on each, and the variables are removed. Variables
    that are meant for another process (``LISTEN_PID``) are removed as well and mean none. Raises
    ConfigError when they contradict themselves or a descriptor is not open. See sd_listen_fds(3).
    """
    count, pid, names, _ = (
        environ.pop(name, None) for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
    )
    if not count or not pid or _number("LISTEN_PID", pid) != os.getpid():
        return {}
    fds = range(FIRST_FD, FIRST_FD + _number("LISTEN_FDS", count))
    for fd in fds:
        try:
            os.set_inheritable(fd, False)
        except OSError as error:
            raise ConfigError(f"LISTEN_FDS={count}: descriptor {fd}: {reason(error)}") from error
    known = names.split(":") if names else [_UNNAMED] * len(fds)
    if len(known) != len(fds):
        raise ConfigError(f"LISTEN_FDNAMES={names!r} does not name {len(fds)} sockets")
    return dict(zip(fds, known, strict=True))


class Notifier:
    """Tells systemd how the service is, or nobody if there is nobody to tell. See sd_notify(3).

    ``address`` is the datagram socket that listens: a path, or ``@name`` for an abstract one.
    ``watchdog_interval`` is how often ``watchdog()`` must be called, in seconds; None if nobody waits for
    it. Each message is one datagram that is sent at once or not at all.
    """

    def __init__(self, address: str | None = None, watchdog_interval: float | None = None) -> None:
        self.watchdog_interval = watchdog_interval if address else None
        self._where = address
        self._silent = False  # since a message was lost
        self._stopping = False  # which nothing takes back
        if address:
            name = os.fsencode(address)
            self._address = b"\0" + name[1:] if name.startswith(b"@") else name
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._sock.setblocking(False)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """Read and remove ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``.

        The interval is half of what systemd waits, as sd_watchdog_enabled(3) advises. Raises ConfigError
        for a watchdog time that is no number.
        """
        address, usec, pid = (
            environ.pop(name, None) for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        )
        interval = None
        if usec and (pid is None or _number("WATCHDOG_PID", pid) == os.getpid()):
            interval = _number("WATCHDOG_USEC", usec) / 2e6 or None
        return cls(address, interval)

    def ready(self, status: str) -> None:
        """The service serves: after a start, and again after a reload; not told once it is stopping."""
        if not self._stopping:
            self._send("READY=1", f"STATUS={_line(status)}")

    def reloading(self) -> None:
        """The service reads its configuration; ``ready`` follows, whether it takes effect or not. Not told
        once the service is stopping."""
        # Type=notify-reload wants to know that this is about the signal it just sent, so: when.
        if not self._stopping:
            self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The service takes no more clients and finishes with those it has."""
        self._stopping = True
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._send(f"STATUS={_line(text)}")

    def watchdog(self) -> None:
        """The service is alive."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        """Tell nothing more."""
        if self._where:
            self._where = None
            self._sock.close()

    def _send(self, *assignments: str) -> None:
        if not self._where:
            return
        try:
            self._sock.sendto("\n".join(assignments).encode(errors="backslashreplace"), self._address)
        except OSError as error:  # the manager is away (ENOENT, ECONNREFUSED) or does not read (EAGAIN)
            if not self._silent:
                self._silent = True
                logger.warning(
                    "cannot notify systemd at %r: %s", self._where, reason(error), extra={"event": "systemd"}
                )
        else:
            self._silent = False


def _line(text: str) -> str:
    """``text`` on one line: another one would be another assignment."""
    return " ".join(text.splitlines())


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ConfigError(f"{name}={text[:40]!r} is not a number")
    return int(text)

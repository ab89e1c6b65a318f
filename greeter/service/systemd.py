"""The interface to systemd: inherited sockets, readiness, status, watchdog.

Invariants:

- Reading an environment variable removes it, so that a child process does not take it for its own.
- Wrong variables are an error at startup.
- A socket has one use. What no option names is for greetings, or is closed if ``--listen`` names others.
- Notifications are best effort: they never raise, never block, and log one warning per outage.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import time
from typing import TYPE_CHECKING

from greeter.core.endpoint import Endpoint
from greeter.errors import ConfigError, os_error_text

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from greeter.config.options import ServeOptions

logger = logging.getLogger("greeter")

FIRST_FD = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)
_UNKNOWN_NAME = "unknown"  # the name of an unnamed socket in sd_listen_fds_with_names(3)


def listen_fds(environ: MutableMapping[str, str] = os.environ) -> dict[int, str]:
    """Take the descriptors that systemd passed to this process; see sd_listen_fds(3).

    Child processes do not inherit them: close-on-exec is set on each. The variables are removed, also if
    they are meant for another process (``LISTEN_PID``), such as a wrapper that has started this one. A
    warning says so then.

    Args:
        environ: The environment.

    Returns:
        The name of each descriptor; empty if this process was passed none.

    Raises:
        ConfigError: The variables contradict each other, or a descriptor is not open.
    """
    count, pid, names, _ = (
        environ.pop(name, None) for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
    )
    if not count or not _parse_number("LISTEN_FDS", count):
        return {}
    if not pid or _parse_number("LISTEN_PID", pid) != os.getpid():
        logger.warning(
            "the %s sockets of LISTEN_FDS are ignored: LISTEN_PID is %s, and this process is %d",
            count,
            pid or "not set",
            os.getpid(),
            extra={"event": "systemd"},
        )
        return {}
    fds = range(FIRST_FD, FIRST_FD + _parse_number("LISTEN_FDS", count))
    for fd in fds:
        try:
            os.set_inheritable(fd, False)
        except OSError as error:
            raise ConfigError(f"LISTEN_FDS={count}: descriptor {fd}: {os_error_text(error)}") from error
    known = names.split(":") if names else [_UNKNOWN_NAME] * len(fds)
    if len(known) != len(fds):
        raise ConfigError(f"LISTEN_FDNAMES={names!r} does not name {len(fds)} sockets")
    return dict(zip(fds, known, strict=True))


def claim_sockets(options: ServeOptions, names: Mapping[int, str]) -> ServeOptions:
    """Replace the names of sockets in the options by their descriptors.

    Args:
        options: The options of the service.
        names: The name of each socket of systemd, as ``listen_fds`` returns them.

    Returns:
        The options. ``fd:NAME`` of ``--listen`` becomes every socket of this name.

    Raises:
        ConfigError: No socket has a name, ``--metrics`` names several, or a descriptor is named twice.
    """
    claimed: dict[int, str] = {}

    def claim(flag: str, endpoint: Endpoint) -> list[Endpoint]:
        fds = [endpoint.fd] if endpoint.kind == "fd" else []
        if endpoint.name:
            fds = [fd for fd, name in names.items() if name == endpoint.name]
            if not fds:
                known = ", ".join(sorted(set(names.values()))) or "none"
                raise ConfigError(f"{flag} {endpoint}: systemd has passed no socket of this name ({known})")
        for fd in fds:
            if fd in claimed:
                raise ConfigError(f"descriptor {fd} is named twice: {claimed[fd]} and {flag} {endpoint}")
            claimed[fd] = f"{flag} {endpoint}"
        return [Endpoint.inherited(fd) for fd in fds] or [endpoint]

    listen = tuple(found for endpoint in options.listen for found in claim("--listen", endpoint))
    metrics = options.metrics
    if metrics is not None:
        metrics, *others = claim("--metrics", metrics)
        if others:
            raise ConfigError(f"--metrics {options.metrics}: {len(others) + 1} sockets have this name")
    return dataclasses.replace(options, listen=listen, metrics=metrics)


def unclaimed_sockets(options: ServeOptions, names: Mapping[int, str]) -> tuple[Endpoint, ...]:
    """Return the sockets of systemd that the options do not name. Arguments as for ``claim_sockets``."""
    named = (*options.listen, *((options.metrics,) if options.metrics is not None else ()))
    return tuple(Endpoint.inherited(fd) for fd in names if all(fd != endpoint.fd for endpoint in named))


class Notifier:
    """Sends the state of the service to systemd; see sd_notify(3). Each message is one datagram.

    Args:
        address: The datagram socket of systemd: a path, or ``@name`` for an abstract one. None to send
            nothing.
        watchdog_interval: How often ``watchdog()`` must be called, in seconds; None if there is no watchdog.
    """

    def __init__(self, address: str | None = None, watchdog_interval: float | None = None) -> None:
        self.watchdog_interval = watchdog_interval if address else None
        self._address_text = address
        self._failing = False  # True after a message that could not be sent
        self._stopping = False  # True from stopping() on; it is never reset
        self._sock: socket.socket | None = None  # from the first message on
        if address:
            name = os.fsencode(address)
            self._address = b"\0" + name[1:] if name.startswith(b"@") else name

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """Read and remove ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``.

        The watchdog interval is half of the time that systemd waits, as sd_watchdog_enabled(3) advises.

        Args:
            environ: The environment.

        Returns:
            The notifier, which sends nothing if there is no ``NOTIFY_SOCKET``.

        Raises:
            ConfigError: A variable is not a number.
        """
        address, usec, pid = (
            environ.pop(name, None) for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        )
        interval = None
        if usec and (pid is None or _parse_number("WATCHDOG_PID", pid) == os.getpid()):
            interval = _parse_number("WATCHDOG_USEC", usec) / 2e6 or None
        return cls(address, interval)

    def ready(self, status: str) -> None:
        """Report that the service serves, after a start or a reload. Not sent once it is stopping."""
        if not self._stopping:
            self._send("READY=1", f"STATUS={_one_line(status)}")

    def reloading(self) -> None:
        """Report the start of a reload; ``ready`` must follow in any case. Not sent once it is stopping."""
        # Type=notify-reload matches this message to its signal by the time (systemd.service(5)).
        if not self._stopping:
            self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Report the start of a drain."""
        self._stopping = True
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Send a text for ``systemctl status``; it is sent as one line."""
        self._send(f"STATUS={_one_line(text)}")

    def watchdog(self) -> None:
        """Report to the watchdog that the service is alive."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        """Close the socket. Later messages are not sent."""
        if self._address_text:
            self._address_text = None
            if self._sock is not None:
                self._sock.close()

    def _send(self, *assignments: str) -> None:
        if not self._address_text:
            return
        try:
            if self._sock is None:
                self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._sock.setblocking(False)
            self._sock.sendto("\n".join(assignments).encode(errors="backslashreplace"), self._address)
        # systemd is not there (ENOENT, ECONNREFUSED) or does not read (EAGAIN), or there is no descriptor.
        except OSError as error:
            if not self._failing:
                self._failing = True
                logger.warning(
                    "cannot notify systemd at %r: %s",
                    self._address_text,
                    os_error_text(error),
                    extra={"event": "systemd"},
                )
        else:
            self._failing = False


def _one_line(text: str) -> str:
    """Return ``text`` as one line: a second line would be a second assignment."""
    return " ".join(text.splitlines())


def _parse_number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ConfigError(f"{name}={text[:40]!r} is not a number")
    return int(text)

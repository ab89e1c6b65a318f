"""What is logged of connections: who was admitted, rejected, not greeted, and at debug how each one ended.

Invariants:

- Lines that clients can cause are bounded: a matter that repeats gets MAX_LINES lines in LOG_INTERVAL, and
  the next line tells how many were left out. At level debug every one is logged.
- Every line about a client has the fields ``peer`` and, if it was not greeted, ``reason``, ``error`` and
  ``elapsed_s``.
- Without level debug, a connection that is greeted costs nothing here but its line in the access log.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from greeter.core.address import endpoint_text, format_peer
from greeter.server.accept_pause import LogLimit, logger

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from greeter.core.address import Address
    from greeter.core.server_config import AccessLog
    from greeter.errors import GreetingError

# Lines in a second about clients that were not greeted, for each reason.
MAX_LINES = 10
# Characters of the error of a client. A line has it twice, and should fit into one write to a pipe (pipe(7)).
MAX_MESSAGE = 500
# A traceback of the greeting callable begins behind the frames of this package.
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class ConnectionLog:
    """The log lines about the connections of one server.

    Args:
        loop: the event loop, whose clock is used.
        access_log: called with the address of each client that is admitted, or None.

    ``endings`` is the ConnectionEndings of a server that is started at level debug, or None.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, access_log: AccessLog | None) -> None:
        self.access_log = access_log
        self.limit = LogLimit(loop)
        self.endings = ConnectionEndings(loop) if logger.isEnabledFor(logging.DEBUG) else None

    def admitted(self, address: Address) -> None:
        """Call the access log. An error in it costs no client."""
        if self.access_log is None:
            return
        try:
            self.access_log(address)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if self._allowed("log"):
                extra = {"event": "access_log", "peer": endpoint_text(address), "error": repr(error)}
                logger.error("the access log failed for %s: %r", format_peer(address), error, extra=extra)

    def rejected(self, address: Address, why: str, counts: Mapping[str, int]) -> None:
        """Log a rejected client, once a second. ``counts`` are the rejections so far, by reason."""
        if not self._allowed("rejected"):
            return
        extra = {"event": "rejected", "peer": endpoint_text(address), "reason": why}
        shown = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
        logger.warning(
            "rejected clients: %s so far, last %s",
            shown,
            format_peer(address),
            extra=extra | {"count": sum(counts.values())},
        )

    def greeting_failed(self, address: Address, error: GreetingError, seconds: float) -> None:
        """Log a failure of the greeting callable, with its traceback once a second for each type."""
        cause = error.__cause__
        trace = None
        if cause is not None and self._allowed(f"traceback {type(cause).__qualname__}"):
            trace = (type(cause), cause, _frames_of_the_app(cause.__traceback__))
        self._failed(logging.WARNING, address, "greeting_error", str(error), seconds, exc_info=trace)

    def preamble_failed(
        self, address: Address, why: str, message: str, seconds: float, *, left: bool
    ) -> None:
        """Log a PROXY header or a TLS handshake that failed.

        A client that ``left`` before it sent anything, as a health check does, is logged once a second, and
        without an access log at debug only.
        """
        if not left:
            self._failed(logging.INFO, address, why, message, seconds)
        else:
            level = logging.DEBUG if self.access_log is None else logging.INFO
            self._failed(level, address, why, message, seconds, matter=f"left {why}", lines=1)

    def timed_out(self, address: Address, message: str, seconds: float) -> None:
        """Log a client that was not greeted at its deadline."""
        self._failed(logging.WARNING, address, "greet_timeout", message, seconds)

    def not_sent(self, address: Address, message: str, seconds: float) -> None:
        """Log a datagram whose greeting the system could not send."""
        self._failed(logging.WARNING, address, "unsent", message, seconds)

    def introduced(self, key: object, address: Address) -> None:
        """A PROXY header has told the address of the client that is known by ``key``."""
        if self.endings is not None:
            self.endings.introduced(key, address)

    def ended(self, how: str, *keys: object) -> None:
        """Connections will be closed: for one of FAILURES or REJECTIONS, or for "linger_timeout"."""
        if self.endings is not None:
            self.endings.ended(how, keys)

    def open_keys(self) -> list[object]:
        """Returns the keys of the open connections whose ends will be logged."""
        return [] if self.endings is None else self.endings.keys()

    def _failed(
        self,
        level: int,
        address: Address,
        why: str,
        message: str,
        seconds: float,
        *,
        matter: str = "",
        lines: int = MAX_LINES,
        exc_info: Any = None,
    ) -> None:
        """Log a client that was not greeted.

        Args:
            level: the level of the line.
            address: the client's.
            why: one of the FAILURES.
            message: what happened.
            seconds: since the connection was accepted.
            matter: what counts as the same; ``why`` by default.
            lines: how many lines about it are logged in a second.
            exc_info: the exception whose traceback is logged, as logging takes it.
        """
        if not logger.isEnabledFor(level) or not self._allowed(matter or why, lines):
            return
        if len(message) > MAX_MESSAGE:  # what a callable raises
            message = message[:MAX_MESSAGE] + "..."
        extra: dict[str, object] = {"event": "failed", "peer": endpoint_text(address), "reason": why}
        extra |= {"error": message, "elapsed_s": round(seconds, 3)}
        text = "%s: %s"
        arguments: tuple[object, ...] = (format_peer(address), message)
        if left_out := self.limit.take_left_out(matter or why):
            extra["left_out"] = left_out
            text, arguments = text + " (%d more were not logged)", (*arguments, left_out)
        logger.log(level, text, *arguments, extra=extra, exc_info=exc_info)

    def _allowed(self, matter: str, lines: int = 1) -> bool:
        return logger.isEnabledFor(logging.DEBUG) or self.limit.allows(matter, lines)


class ConnectionEndings:
    """A line for each connection when it is closed: how it ended, its bytes, its seconds.

    Args:
        loop: the event loop, whose clock is used.

    Connections are known by the keys of the tracker.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._open: dict[object, _Ending] = {}

    def opened(self, key: object, address: Address) -> None:
        """A connection was accepted."""
        self._open[key] = _Ending(address, self._loop.time())

    def introduced(self, key: object, address: Address) -> None:
        """A PROXY header has told the client's address."""
        if (ending := self._open.get(key)) is not None:
            ending.address = address

    def greeted(self, key: object, sent: int) -> None:
        """The kernel has ``sent`` bytes, the whole greeting."""
        if (ending := self._open.get(key)) is not None:
            ending.how, ending.sent = "greeted", sent

    def ended(self, how: str, keys: Iterable[object]) -> None:
        """The connections will be closed: for one of FAILURES or REJECTIONS, or for "linger_timeout"."""
        for key in keys:
            if (ending := self._open.get(key)) is not None:
                ending.how = how

    def keys(self) -> list[object]:
        """Returns the keys of the connections that are open."""
        return list(self._open)

    def closed(self, keys: Iterable[object]) -> None:
        """The connections are closed: log each."""
        for key in keys:
            if (ending := self._open.pop(key, None)) is not None:
                seconds = self._loop.time() - ending.since
                logger.debug(
                    "%s: closed (%s), %d bytes sent, %.3f s",
                    format_peer(ending.address),
                    ending.how,
                    ending.sent,
                    seconds,
                    extra={
                        "event": "closed",
                        "peer": endpoint_text(ending.address),
                        "reason": ending.how,
                        "sent_bytes": ending.sent,
                        "elapsed_s": round(seconds, 3),
                    },
                )


class _Ending:
    """What is known of an open connection. One that nothing is told of was reset."""

    __slots__ = ("address", "how", "sent", "since")

    def __init__(self, address: Address, since: float) -> None:
        self.address = address
        self.how = "reset"
        self.sent = 0
        self.since = since


def _frames_of_the_app(trace: TracebackType | None) -> TracebackType | None:
    """Return the part of a traceback that begins in the greeting callable; all of it if there is none."""
    first = trace
    while first is not None and first.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        first = first.tb_next
    return first or trace

"""Log lines for a service: text or JSON, batched, in order, and none can be forged by a peer.

The law: one record is one line. Control characters are escaped, whoever wrote them. Lines wait at most
FLUSH_SECONDS for company, because a write for each client would cost more than the client; the order is
kept, and ``flush`` leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from greeter.reception import Address, describe

if TYPE_CHECKING:
    from asyncio import TimerHandle

LogFormat = Literal["text", "json"]

FLUSH_SECONDS = 0.1
# A reader of the log that has stopped reading costs this much memory, then lines; never the service.
BACKLOG_BYTES = 8 * 1024 * 1024

# C0, DEL and C1: nothing in a log line may start a new line or talk to a terminal.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    0x0A: "\\n",
    0x0D: "\\r",
    0x09: "\\t",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}
_FIELDS = ("event", "address", "peer", "path", "loop", "workers", "reason", "pid")


def escape(text: str) -> str:
    """``text`` with its control characters made visible."""
    return text.translate(_ESCAPES)


class TextFormatter(logging.Formatter):
    """``message``, and ``warning: message`` above INFO. Whoever keeps the log adds the time."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return escape(level + record.getMessage()) + _trace(self, record)

    def connection(self, address: Address) -> str:
        """The line of one client."""
        return f"Got a connection from {describe(address)}"


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, event and its fields, message."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {"time": _rfc3339(record.created), "level": record.levelname.lower()}
        entry |= {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        entry["message"] = record.getMessage() + _trace(self, record)
        return json.dumps(entry, default=str)

    def connection(self, address: Address) -> str:
        """The line of one client."""
        peer = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else address
        entry = {"time": _rfc3339(time.time()), "level": "info", "event": "connection", "peer": peer}
        return json.dumps(entry, default=str)


class LogStream(logging.Handler):
    """A logging handler, and the access log beside it, before one file descriptor.

    ``connection`` is an AccessLog. A write that the descriptor cannot take now is kept for later, up to
    BACKLOG_BYTES; what does not fit is counted, and the count is logged when there is room again. Outside
    a running event loop every line is written at once.
    """

    def __init__(self, fd: int, log_format: LogFormat = "text", level: int | str = logging.INFO) -> None:
        super().__init__(level)
        self.lost = 0
        self._fd = fd
        self._lines: list[str] = []
        self._unwritten = b""
        self._timer: TimerHandle | None = None
        self._shape = JsonFormatter() if log_format == "json" else TextFormatter()
        self.setFormatter(self._shape)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
        else:
            self._write(line)

    def connection(self, address: Address) -> None:
        """Write down one client."""
        self._write(self._shape.connection(address))

    def _write(self, line: str) -> None:
        self._lines.append(line)
        if self._timer is None:
            try:
                self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._tick)
            except RuntimeError:  # no loop is running
                self.flush()

    def _tick(self) -> None:
        self._timer = None
        self.flush()
        if self._unwritten:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._tick)

    def flush(self) -> None:
        """Write whatever waits."""
        if self._lines:
            self._lines.append("")
            data = "\n".join(self._lines).encode(errors="backslashreplace")
            lines = len(self._lines) - 1
            self._lines.clear()
            if len(self._unwritten) + len(data) <= BACKLOG_BYTES:
                self._unwritten += data
            else:
                self.lost += lines
        while self._unwritten:
            try:
                self._unwritten = self._unwritten[os.write(self._fd, self._unwritten) :]
            except BlockingIOError:
                return
            except OSError:  # the reader is gone, or the disk is full
                self.lost += self._unwritten.count(b"\n")
                self._unwritten = b""
                return
        if self.lost:
            lost, self.lost = self.lost, 0
            self._unwritten = (self._shape.format(_lost_record(lost)) + "\n").encode()


def _lost_record(lines: int) -> logging.LogRecord:
    return logging.LogRecord("greeter", logging.WARNING, "", 0, "%d log lines were lost", (lines,), None)


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """A traceback, in one line, for records that bring one."""
    return "" if not record.exc_info else " | " + escape(formatter.formatException(record.exc_info))


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"

"""Log lines for a service: text or JSON, batched, in order, and none can be forged by a peer.

The law: one record is one line. Control characters are escaped, whoever wrote them. Lines wait at most
FLUSH_SECONDS for company, because a write for each client would cost more than the client; the order is
kept, and ``flush`` leaves nothing behind. A reader that has stopped reading does not stop the service.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from greeter.core.address import Address, describe

if TYPE_CHECKING:
    from asyncio import TimerHandle

LogFormat = Literal["text", "json"]

FLUSH_SECONDS = 0.1
# A reader of the log that has stopped reading costs this much memory, then lines; never the service.
BACKLOG_BYTES = 8 * 1024 * 1024
# ... and a service that ends waits this long for it.
LAST_SECONDS = 1.0
# A pipe that poll() calls writable takes this much without blocking, and whole (pipe(7)), so the lines of
# several processes on one pipe do not run into each other.
PIECE = getattr(select, "PIPE_BUF", 512)

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
        entry: dict[str, object] = {"time": _rfc3339(record.created), "level": record.levelname.lower()}
        entry |= {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        entry["message"] = record.getMessage() + _trace(self, record)
        return json.dumps(entry, default=str)

    def connection(self, address: Address) -> str:
        """The line of one client."""
        now = _rfc3339(time.time())
        return json.dumps({"time": now, "level": "info", "event": "connection", "peer": _peer(address)})


class LogStream(logging.Handler):
    """A logging handler, and the access log beside it, before one file descriptor.

    ``connection`` is an AccessLog. What the descriptor cannot take now is kept for later, up to
    BACKLOG_BYTES; what does not fit is counted, and the count is logged when there is room again. Outside
    a running event loop every line is written at once.
    """

    def __init__(self, fd: int, log_format: LogFormat = "text", level: int | str = logging.INFO) -> None:
        super().__init__(level)
        self.lost = 0
        self._fd = fd
        self._lines: list[str] = []
        self._unwritten = bytearray()
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
                self._flush(0)

    def _tick(self) -> None:
        self._timer = None
        self._flush(0)
        if self._unwritten and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._tick)

    def flush(self) -> None:
        """Write whatever waits. Outside a running event loop, give a slow reader LAST_SECONDS to take it."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._timer = None  # its loop may have ended, and then it never comes
            self._flush(LAST_SECONDS)
        else:
            self._flush(0)

    def _flush(self, patience: float) -> None:
        end = time.monotonic() + patience
        self.acquire()  # a sync greeting logs from its thread
        try:
            self._gather()
            while self._unwritten and self._writable(end - time.monotonic()):
                piece = self._unwritten[:PIECE]
                piece = piece[: piece.rfind(b"\n") + 1] or piece
                try:
                    del self._unwritten[: os.write(self._fd, piece)]
                except BlockingIOError:
                    return
                except OSError:  # the reader is gone, or the disk is full
                    self.lost += self._unwritten.count(b"\n")
                    self._unwritten.clear()
                    return
                if self.lost and not self._unwritten:
                    lost, self.lost = self.lost, 0
                    self._unwritten += (self._shape.format(_lost_record(lost)) + "\n").encode()
        finally:
            self.release()

    def _gather(self) -> None:
        count = len(self._lines)  # the loop may add one while another thread is here
        if not count:
            return
        data = ("\n".join(self._lines[:count]) + "\n").encode(errors="backslashreplace")
        del self._lines[:count]
        if len(self._unwritten) + len(data) <= BACKLOG_BYTES:
            self._unwritten += data
        else:
            self.lost += count

    def _writable(self, seconds: float) -> bool:
        """True if the descriptor takes a piece, or has an error to tell, within ``seconds``."""
        if not hasattr(select, "poll"):  # pragma: no cover  # not a Unix: write, and block if it does
            return True
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(max(0, seconds) * 1000))


def _lost_record(lines: int) -> logging.LogRecord:
    record = logging.LogRecord("greeter", logging.WARNING, "", 0, "%d log lines were lost", (lines,), None)
    vars(record).update({"event": "lost"})
    return record


def _peer(address: Address) -> object:
    """The client as an endpoint is written; a Unix client is mostly unnamed, one that had left is null."""
    if isinstance(address, tuple):
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(address, bytes):
        return "@" + address[1:].decode(errors="backslashreplace")
    return address


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """A traceback, in one line, for records that bring one."""
    return "" if not record.exc_info else " | " + escape(formatter.formatException(record.exc_info))


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"

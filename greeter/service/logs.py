"""The log of a service: text or JSON lines, written in batches.

Invariants:

- One record is one line. Control characters are escaped, so that a client cannot forge a line.
- A line is written within FLUSH_SECONDS. A write for each client would cost more than the client itself.
- The order of the lines is kept, and ``flush`` writes all of them.
- A reader that has stopped reading does not block the service: at most BACKLOG_BYTES are kept for it, and
  further lines are counted and dropped.
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

from greeter.core.address import Address, format_peer

if TYPE_CHECKING:
    from asyncio import TimerHandle

LogFormat = Literal["text", "json"]

FLUSH_SECONDS = 0.1
# How much is kept for a reader that has stopped reading.
BACKLOG_BYTES = 8 * 1024 * 1024
# How long the last flush waits for such a reader.
FINAL_FLUSH_SECONDS = 1.0
# A pipe that poll() reports as writable accepts this much atomically, without blocking (pipe(7)). So the
# lines of several processes on one pipe are not mixed.
MAX_WRITE_BYTES = getattr(select, "PIPE_BUF", 512)

# C0, DEL and C1: a log line contains no line breaks and no terminal escapes.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    0x0A: "\\n",
    0x0D: "\\r",
    0x09: "\\t",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}
_FIELDS = ("event", "address", "peer", "path", "loop", "workers", "reason", "pid")


def escape(text: str) -> str:
    """Return ``text`` with its control characters escaped."""
    return text.translate(_ESCAPES)


class TextFormatter(logging.Formatter):
    """``message`` at INFO, else ``warning: message``. No timestamp: journald and Docker add one."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return escape(level + record.getMessage()) + _format_traceback(self, record)

    def connection(self, address: Address) -> str:
        """Return the line of an admitted client."""
        return f"Got a connection from {format_peer(address)}"


class JsonFormatter(logging.Formatter):
    """A JSON object per line: time, level, event and its fields, message."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {"time": _rfc3339(record.created), "level": record.levelname.lower()}
        entry |= {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        entry["message"] = record.getMessage() + _format_traceback(self, record)
        return json.dumps(entry, default=str)

    def connection(self, address: Address) -> str:
        """Return the line of an admitted client."""
        now = _rfc3339(time.time())
        return json.dumps({"time": now, "level": "info", "event": "connection", "peer": _json_peer(address)})


class LogStream(logging.Handler):
    """A logging handler and an access log that write to one file descriptor.

    What the descriptor does not accept is kept, up to BACKLOG_BYTES. Further lines are dropped and counted in
    ``dropped``; the count is logged when the reader has caught up. Outside a running event loop, every line
    is written at once.

    Args:
        fd: The file descriptor, which stays open.
        log_format: ``"text"`` or ``"json"``.
        level: The lowest level of the records to write.
    """

    def __init__(self, fd: int, log_format: LogFormat = "text", level: int | str = logging.INFO) -> None:
        super().__init__(level)
        self.dropped = 0
        self._fd = fd
        self._lines: list[str] = []
        self._unwritten = bytearray()
        self._timer: TimerHandle | None = None
        self._line_formatter = JsonFormatter() if log_format == "json" else TextFormatter()
        self.setFormatter(self._line_formatter)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
        else:
            self._write(line)

    def connection(self, address: Address) -> None:
        """Log an admitted client. This method is an AccessLog."""
        self._write(self._line_formatter.connection(address))

    def _write(self, line: str) -> None:
        self._lines.append(line)
        if self._timer is None:
            try:
                self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._on_timer)
            except RuntimeError:  # no loop is running
                self._flush(0)

    def _on_timer(self) -> None:
        self._timer = None
        self._flush(0)
        if self._unwritten and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._on_timer)

    def flush(self) -> None:
        """Write all lines. Outside a running event loop, wait up to FINAL_FLUSH_SECONDS for a slow reader."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._timer = None  # if its loop has ended, it never fires
            self._flush(FINAL_FLUSH_SECONDS)
        else:
            self._flush(0)

    def _flush(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        self.acquire()  # a sync greeting logs from its thread
        try:
            self._encode_pending()
            while self._unwritten and self._writable(end - time.monotonic()):
                chunk = self._unwritten[:MAX_WRITE_BYTES]
                chunk = chunk[: chunk.rfind(b"\n") + 1] or chunk
                try:
                    del self._unwritten[: os.write(self._fd, chunk)]
                except BlockingIOError:
                    return
                except OSError:  # the reader is gone, or the disk is full
                    self.dropped += self._unwritten.count(b"\n")
                    self._unwritten.clear()
                    return
                if self.dropped and not self._unwritten:
                    count, self.dropped = self.dropped, 0
                    self._unwritten += (self._line_formatter.format(_dropped_record(count)) + "\n").encode()
        finally:
            self.release()

    def _encode_pending(self) -> None:
        count = len(self._lines)  # the event loop may append while another thread is here
        if not count:
            return
        data = ("\n".join(self._lines[:count]) + "\n").encode(errors="backslashreplace")
        del self._lines[:count]
        if len(self._unwritten) + len(data) <= BACKLOG_BYTES:
            self._unwritten += data
        else:
            self.dropped += count

    def _writable(self, seconds: float) -> bool:
        """Return True if the descriptor becomes writable, or has an error, within ``seconds``."""
        if not hasattr(select, "poll"):  # pragma: no cover  # not Unix: the write may block
            return True
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(max(0, seconds) * 1000))


def _dropped_record(lines: int) -> logging.LogRecord:
    record = logging.LogRecord("greeter", logging.WARNING, "", 0, "%d log lines were dropped", (lines,), None)
    vars(record).update({"event": "lost"})
    return record


def _json_peer(address: Address) -> object:
    """Return a client's address in the notation of endpoints; "" if it is unnamed, None if it is unknown."""
    if isinstance(address, tuple):
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(address, bytes):
        return "@" + address[1:].decode(errors="backslashreplace")
    return address


def _format_traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """Return the traceback of a record on one line; empty if it has none."""
    return "" if not record.exc_info else " | " + escape(formatter.formatException(record.exc_info))


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"

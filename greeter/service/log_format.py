"""The lines of a service's log: text, text on a terminal, or JSON.

Invariants:

- One record is one line. Control characters are escaped, so that a client cannot forge a line. Only on a
  terminal does a traceback take several lines.
- The line of a client, ``Got a connection from ...``, is the same in every form of text.
- Under journald a line begins with its priority, as in ``<4>`` (sd-daemon(3)).
"""

from __future__ import annotations

import json
import logging
import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from greeter.core.address import Address, endpoint_text, format_peer

if TYPE_CHECKING:
    from collections.abc import Mapping

LogFormat = Literal["text", "json"]

# C0, DEL and C1: a log line contains no line breaks and no terminal escapes.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    0x0A: "\\n",
    0x0D: "\\r",
    0x09: "\\t",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}
# The fields of a record that a JSON line has, in this order.
FIELDS = (
    *("event", "address", "peer", "path", "loop", "workers", "reason", "error"),
    *("max_connections", "source", "worker", "replaces", "count", "left_out", "sent_bytes", "elapsed_s"),
)
# The end of a traceback names the error and the place. With it, a line still fits into one write to a pipe,
# which is not mixed with those of other processes (pipe(7), PIPE_BUF).
MAX_TRACEBACK = 2000
MAX_ROW = 300
# Numbers of syslog(3), from the lowest level on.
_PRIORITIES = ((logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3))
_CRITICAL = 2
# Colours of a terminal (ECMA-48, SGR): what is secondary is faint.
_FAINT, _RESET = "\x1b[2m", "\x1b[0m"
_COLOURS = {logging.DEBUG: _FAINT, logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m"}


def escape(text: str) -> str:
    """Return ``text`` with its control characters escaped."""
    return text.translate(_ESCAPES)


class LineFormatter(logging.Formatter):
    """The base class of the formats.

    Args:
        priorities: True to begin each line with its priority, for journald.
    """

    def __init__(self, *, priorities: bool = False) -> None:
        super().__init__()
        self._priorities = priorities

    def prefix(self, level: int) -> str:
        """Return what a line of this level begins with."""
        if not self._priorities:
            return ""
        return f"<{next((number for known, number in _PRIORITIES if level <= known), _CRITICAL)}>"

    def traceback(self, exc_info: Any) -> str:
        """Return the text of a traceback, or its last MAX_TRACEBACK characters. Long rows are shortened."""
        rows = self.formatException(exc_info).split("\n")
        text = "\n".join(row if len(row) <= MAX_ROW else row[:MAX_ROW] + "..." for row in rows)
        return text if len(text) <= MAX_TRACEBACK else "..." + text[-MAX_TRACEBACK:]

    def connection(self, address: Address) -> str:
        """Return the line of an admitted client."""
        return f"{self.prefix(logging.INFO)}Got a connection from {format_peer(address)}"

    def datagram(self, address: Address) -> str:
        """Return the line of an admitted datagram."""
        return f"{self.prefix(logging.INFO)}Got a datagram from {format_peer(address)}"


class TextFormatter(LineFormatter):
    """``message`` at INFO, else ``warning: message``. No timestamp: journald and Docker add one."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        trace = "" if not record.exc_info else " | " + escape(self.traceback(record.exc_info))
        return self.prefix(record.levelno) + escape(level + record.getMessage()) + trace


class TerminalFormatter(LineFormatter):
    """Text on a terminal: with the time, and with colours.

    Args:
        colours: False to write no colours.
    """

    def __init__(self, *, colours: bool = True) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}:"
        parts = [self._coloured(_FAINT, clock), self._coloured(_COLOURS.get(record.levelno, ""), level)]
        line = " ".join(part for part in (*parts, escape(record.getMessage())) if part)
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            line += "".join("\n" + escape(row) for row in trace.split("\n"))
        return line

    def _coloured(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_RESET}" if self._colours and colour and text else text


class JsonFormatter(LineFormatter):
    """A JSON object per line: time, level, pid, event and its fields, message."""

    def format(self, record: logging.LogRecord) -> str:
        entry = self._entry(record.created, record.levelname.lower())
        entry |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        entry["message"] = record.getMessage()
        if record.exc_info:
            entry["traceback"] = self.traceback(record.exc_info)
        return self.prefix(record.levelno) + json.dumps(entry, default=str)

    def connection(self, address: Address) -> str:
        return self._client({"event": "connection", "peer": endpoint_text(address)})

    def datagram(self, address: Address) -> str:
        return self._client({"event": "datagram", "peer": endpoint_text(address)})

    def _client(self, fields: dict[str, object]) -> str:
        return self.prefix(logging.INFO) + json.dumps(self._entry(time.time(), "info") | fields)

    def _entry(self, seconds: float, level: str) -> dict[str, object]:
        return {"time": _rfc3339(seconds), "level": level, "pid": os.getpid()}


def choose_formatter(
    fd: int, log_format: LogFormat, environ: Mapping[str, str] = os.environ
) -> LineFormatter:
    """Return the formatter for a log that goes to a descriptor.

    Args:
        fd: The descriptor: a terminal, a stream of journald, or anything else.
        log_format: ``"text"`` or ``"json"``.
        environ: The environment: JOURNAL_STREAM (systemd.exec(5)), TERM, and NO_COLOR (no-color.org).
    """
    priorities = is_journal(fd, environ.get("JOURNAL_STREAM", ""))
    if log_format == "json":
        return JsonFormatter(priorities=priorities)
    if os.isatty(fd):
        return TerminalFormatter(colours=not environ.get("NO_COLOR") and environ.get("TERM") != "dumb")
    return TextFormatter(priorities=priorities)


def error_line(message: str, log_format: LogFormat, fd: int) -> str:
    """Return the line about a service that could not start, without the line end.

    Args:
        message: The error.
        log_format: ``"text"`` or ``"json"``.
        fd: The descriptor that the line goes to.
    """
    formatter = choose_formatter(fd, log_format)
    if log_format == "json":
        record = logging.LogRecord("greeter", logging.ERROR, "", 0, "%s", (message,), None)
        vars(record).update({"event": "start_failed"})
        return formatter.format(record)
    return f"{formatter.prefix(logging.ERROR)}greeter: {message}"


def is_journal(fd: int, journal_stream: str) -> bool:
    """Return True if a descriptor is the stream of journald that JOURNAL_STREAM names (systemd.exec(5)).

    Args:
        fd: The descriptor.
        journal_stream: The variable: device and inode, as in ``8:1234``. A child that was started with
            another stderr inherits it too.
    """
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return journal_stream == f"{found.st_dev}:{found.st_ino}"


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"

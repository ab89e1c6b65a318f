"""The log of a service, written in batches.

Invariants:

- A line is written within FLUSH_SECONDS. A write for each client would cost more than the client itself.
- The order of the lines is kept, and ``flush`` writes all of them.
- A line is written whole or not at all, also when the disk gets full in the middle of it.
- A reader that has stopped reading does not block the service: at most BACKLOG_BYTES are kept for it, and
  further lines are counted and dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import stat
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from greeter.service.log_format import LogFormat, TerminalFormatter, choose_formatter

if TYPE_CHECKING:
    from asyncio import TimerHandle
    from collections.abc import Iterator

    from greeter.core.address import Address

logger = logging.getLogger("greeter")

FLUSH_SECONDS = 0.1
# How much is kept for a reader that has stopped reading.
BACKLOG_BYTES = 8 * 1024 * 1024
# How long the last flush waits for such a reader.
FINAL_FLUSH_SECONDS = 1.0
# How often it is tried whether the reader can read, if the kernel has no memory to tell.
POLL_SECONDS = 0.01
# A pipe that poll() reports as writable accepts this much atomically, without blocking (pipe(7)). So the
# lines of several processes on one pipe are not mixed.
MAX_WRITE_BYTES = getattr(select, "PIPE_BUF", 512)


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
        self._within_line = False  # the descriptor has the first part of the line that begins _unwritten
        self._stalled = False  # the reader does not accept what is in _unwritten
        self._is_file = _is_file(fd)
        self._timer: TimerHandle | None = None
        self._line_formatter = choose_formatter(fd, log_format)
        self.setFormatter(self._line_formatter)

    @property
    def on_terminal(self) -> bool:
        """True if the lines are text on a terminal."""
        return isinstance(self._line_formatter, TerminalFormatter)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:
            # Not handleError(), which prints a traceback of many lines.
            line = self.format(_broken_record(record))
        self._write(line)

    def connection(self, address: Address) -> None:
        """Log an admitted client. This method is an AccessLog."""
        self._write(self._line_formatter.connection(address))

    def datagram(self, address: Address) -> None:
        """Log an admitted datagram. This method is an AccessLog."""
        self._write(self._line_formatter.datagram(address))

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
        if self._stalled and self._timer is None:
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
            failed = False
            while self._unwritten and not failed and self._writable(end - time.monotonic()):
                chunk = self._next_chunk()
                try:
                    written = os.write(self._fd, chunk)
                except BlockingIOError:
                    break
                except OSError:  # the reader is gone, or the disk is full
                    failed = True
                else:
                    del self._unwritten[:written]
                    self._within_line = not chunk.endswith(b"\n", 0, written)
                    if self._is_file and self._within_line:  # the disk is full
                        failed = self._take_back(chunk[:written])
                if failed:
                    self._drop_unwritten()
                elif self.dropped and not self._unwritten:
                    count, self.dropped = self.dropped, 0
                    self._unwritten += (self._line_formatter.format(_dropped_record(count)) + "\n").encode()
            # After a failure there is nothing to retry until the next line.
            self._stalled = bool(self._unwritten) and not failed
        finally:
            self.release()

    def _drop_unwritten(self) -> None:
        """Drop the lines that cannot be written, but for the rest of one whose first part was written."""
        keep = self._unwritten.find(b"\n") + 1 if self._within_line else 0
        self.dropped += self._unwritten.count(b"\n", keep)
        del self._unwritten[keep:]

    def _take_back(self, written: bytes) -> bool:
        """Remove the first part of a line from the end of the file: its rest may never be written.

        Another process may append to the file before the disk has room again, and this one may end.

        Returns:
            False if the file has grown meanwhile. Then the rest of the line is written before the next one.
        """
        with contextlib.suppress(OSError):
            size = os.fstat(self._fd).st_size
            if os.lseek(self._fd, 0, os.SEEK_CUR) == size:
                os.ftruncate(self._fd, size - len(written) + written.rfind(b"\n") + 1)
                os.lseek(self._fd, 0, os.SEEK_END)
                self._within_line = False
                return True
        return False

    def _next_chunk(self) -> bytes:
        if self._is_file:
            return bytes(self._unwritten)
        chunk = bytes(self._unwritten[:MAX_WRITE_BYTES])
        return chunk[: chunk.rfind(b"\n") + 1] or chunk

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
        end = time.monotonic() + seconds
        while True:
            try:
                return bool(poll.poll(max(0, end - time.monotonic()) * 1000))
            except OSError:  # ENOMEM (poll(2))
                if time.monotonic() >= end:
                    return False
                time.sleep(POLL_SECONDS)


def _is_file(fd: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:
        return False


def _broken_record(record: logging.LogRecord) -> logging.LogRecord:
    """Return a record about one that cannot be formatted: its arguments do not fit its message."""
    where = f"{record.pathname}:{record.lineno}"
    arguments = (record.msg if isinstance(record.msg, str) else type(record.msg).__name__, where)
    return logging.LogRecord(
        "greeter", logging.ERROR, "", 0, "cannot format the log record %r of %s", arguments, sys.exc_info()
    )


@contextlib.contextmanager
def log_python_output() -> Iterator[None]:
    """Log what Python itself prints to stderr: warnings, and exceptions that no caller handles.

    They have several lines, and so are neither JSON nor whole among the lines of other processes.
    """
    old_thread, old_unraisable = threading.excepthook, sys.unraisablehook
    logging.captureWarnings(True)
    threading.excepthook = _log_thread_exception
    sys.unraisablehook = _log_unraisable
    try:
        yield
    finally:
        logging.captureWarnings(False)
        threading.excepthook, sys.unraisablehook = old_thread, old_unraisable


def _log_thread_exception(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit:  # as threading itself does
        return
    name = args.thread.name if args.thread is not None else "unknown"
    logger.error("exception in thread %s: %r", name, args.exc_value, exc_info=_exc_info(args))


def _log_unraisable(args: sys.UnraisableHookArgs) -> None:
    what = args.err_msg or "exception ignored in"
    logger.error("%s %r: %r", what, args.object, args.exc_value, exc_info=_exc_info(args))


def _exc_info(args: threading.ExceptHookArgs | sys.UnraisableHookArgs) -> Any:
    return None if args.exc_value is None else (args.exc_type, args.exc_value, args.exc_traceback)


def _dropped_record(lines: int) -> logging.LogRecord:
    record = logging.LogRecord("greeter", logging.WARNING, "", 0, "%d log lines were dropped", (lines,), None)
    vars(record).update({"event": "lost"})
    return record

"""Records to log, and a pipe to log to."""

from __future__ import annotations

import contextlib
import logging
import os
import sys

CLIENT = ("192.0.2.7", 3747)
HOSTILE = "a\nGot a connection from ('6.6.6.6', 6)\r\x1b[2J\x00\x7f\x85\u2028b"


def record(message: str, *args: object, level: int = logging.INFO, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("greeter", level, "", 0, message, args, None)
    vars(made).update(extra)
    return made


def broken(message: str) -> logging.LogRecord:
    """A record with a traceback."""
    try:
        raise ValueError("line one\nline two \x1b[31m")
    except ValueError:
        return logging.LogRecord("greeter", logging.ERROR, "", 0, message, (), sys.exc_info())


class Pipe:
    """A pipe for a LogStream to write to. The test is the reader."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        self.filler = b""

    def read(self, limit: int = 1 << 24) -> str:
        """What the pipe contains, without what ``fill`` has written."""
        data = b""
        with contextlib.suppress(BlockingIOError):
            while len(data) < limit and (chunk := os.read(self.reading, min(65536, limit - len(data)))):
                data += chunk
        found, self.filler = data.removeprefix(self.filler[: len(data)]), self.filler[len(data) :]
        return found.decode()

    def fill(self) -> None:
        os.set_blocking(self.writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.filler += b"#" * os.write(self.writing, b"#" * 4096)
        os.set_blocking(self.writing, True)

    def close(self) -> None:
        for fd in (self.reading, self.writing):
            with contextlib.suppress(OSError):
                os.close(fd)

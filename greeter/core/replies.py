"""The Reply that a client receives, and the rules that find the end of a greeting.

Invariants:

- The end depends on the bytes alone, not on how they were split into segments. (``idle:DUR`` has no end in
  the bytes: the client's timer ends the greeting at its last byte.)
- A line ends with LF; a CR before it belongs to the line end. A bare CR does not end a line.
- An SMTP or FTP reply (RFC 5321 4.2.1, RFC 959 4.2) whose first line is a three-digit code and a hyphen ends
  with the line that begins with the same code and a space, or that consists of the code. The lines in between
  are arbitrary and may begin with other codes. Any other first line is the whole reply.
- The end of the stream ends a line, and can thereby end a reply (``Until.ended_by_eof``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from greeter.core.durations import parse_duration
from greeter.core.escapes import escape, unescape
from greeter.errors import ConfigError

_MULTILINE = rb"[0-9]{3}-"
MAX_SIZE = 2**31 - 1  # of ``bytes:N``


class Until(NamedTuple):
    r"""What ends a greeting, parsed from text and formatted back to it.

    ============== ================================================================================
    ``eof``        the end of the stream
    ``line``       the end of the first line
    ``reply``      the last line of an SMTP or FTP reply
    ``text:TEXT``  the first occurrence of TEXT, in which ``\r \n \t \\ \xNN`` are escapes
    ``bytes:N``    the N-th byte
    ``idle:DUR``   the last byte before a pause of DUR (``300ms``, ``2s``; a bare number is in seconds)
    ============== ================================================================================

    The end of the stream ends every greeting. It is complete or not: see ``ended_by_eof``.

    Attributes:
        kind: The word before the colon.
        text: The bytes of ``text:TEXT``; empty with the other kinds.
        size: The number of ``bytes:N``; 0 with the other kinds.
        idle: The seconds of ``idle:DUR``; 0 with the other kinds.
    """

    kind: Literal["eof", "line", "reply", "text", "bytes", "idle"]
    text: bytes = b""
    size: int = 0
    idle: float = 0.0

    @classmethod
    def parse(cls, text: str | Until) -> Until:
        """Return the Until of a text in one of the forms above; an Until as it is.

        Raises:
            ConfigError: The text has none of the forms. The message quotes it.
        """
        if isinstance(text, cls):
            return text
        if not isinstance(text, str):
            raise ConfigError(f"until must be a string, as in 'line', not {type(text).__name__}")
        return _parse_until(text)

    def __str__(self) -> str:
        value = {
            "text": escape(self.text),
            "bytes": str(self.size),
            "idle": f"{self.idle:.9f}".rstrip("0").rstrip(".") + "s",
        }.get(self.kind)
        return self.kind if value is None else f"{self.kind}:{value}"

    def end(self, data: bytes | bytearray, seen: int = 0) -> int | None:
        """Find the end of the greeting.

        Args:
            data: What was received so far, from the first byte of the greeting on.
            seen: How many bytes of it an earlier call had, which returned ``None``. It saves work and does
                not change the result.

        Returns:
            The index after the greeting's last byte; ``None`` while the greeting is incomplete, and always
            with ``eof`` and ``idle``.
        """
        if self.kind == "line":
            return data.find(b"\n", seen) + 1 or None
        if self.kind == "reply":
            if data.find(b"\n", seen) < 0:
                return None
            return reply_end(data, data.rfind(b"\n", 0, seen) + 1)
        if self.kind == "text":
            at = data.find(self.text, max(0, seen - len(self.text) + 1))
            return None if at < 0 else at + len(self.text)
        if self.kind == "bytes" and len(data) >= self.size:
            return self.size
        return None

    def ended_by_eof(self, data: bytes | bytearray) -> bool:
        """Return True if ``data``, in which no end was found, is complete when the stream ends after it.

        A multi-line reply without its last line is not, nor is a greeting without the text or with fewer
        bytes than required.
        """
        if self.kind == "reply":
            return reply_end(data + b"\n") is not None
        return self.kind in ("eof", "line", "idle")


@lru_cache(maxsize=256)
def _parse_until(text: str) -> Until:
    kind, colon, value = text.partition(":")
    try:
        if kind in ("eof", "line", "reply") and not colon:
            return Until(kind)  # type: ignore[arg-type]  # mypy does not narrow a str to a Literal here
        if kind == "text" and value:
            return Until("text", text=unescape(value))
        if kind == "bytes" and value.isascii() and value.isdigit() and 1 <= int(value[:11]) <= MAX_SIZE:
            return Until("bytes", size=int(value))
        if kind == "idle" and value and (idle := parse_duration(value)) > 0:
            return Until("idle", idle=idle)
    except ConfigError as error:
        raise ConfigError(f"until {text!r}: {error}") from None
    raise ConfigError(f"until must be eof, line, reply, text:TEXT, bytes:N or idle:DURATION, not {text!r}")


@dataclass(frozen=True, slots=True, repr=False)
class Reply:
    """A greeting that was received.

    ``bool(reply)`` is True if it has a byte. ``str(reply)`` and ``reply.text`` are its text, with undecodable
    bytes escaped. ``bytes(reply)`` is its data.

    Attributes:
        data: The bytes received, including line ends.
        target: The endpoint's text.
        connect_time: Seconds from the call until the connection (with TLS, the handshake) was complete.
        first_byte_time: Seconds from the call until the first byte arrived; ``None`` without one.
        total_time: Seconds from the call until the reply was complete. With ``idle:DUR``, until its last
            byte.
        reset: True if the peer reset the connection after it sent ``data``.
        truncated: True if the TLS stream ended without close_notify, so that bytes may be missing (RFC 8446
            6.1).
        attempts: How many datagrams were sent until the reply came; 1 on a stream.
    """

    data: bytes
    target: str
    connect_time: float
    first_byte_time: float | None
    total_time: float
    reset: bool = False
    truncated: bool = False
    attempts: int = 1

    @property
    def text(self) -> str:
        """The greeting as text. Bytes that are not UTF-8 are escaped, as in ``\\xff``."""
        return self.data.decode(errors="backslashreplace")

    def __bool__(self) -> bool:
        return bool(self.data)

    def __bytes__(self) -> bytes:
        return self.data

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        data = repr(self.data) if len(self.data) <= 60 else f"{self.data[:57]!r}... ({len(self.data)} bytes)"
        state = " reset" * self.reset + " truncated" * self.truncated
        if self.attempts > 1:
            state += f" at attempt {self.attempts}"
        return f"<Reply {data} from {self.target} in {self.total_time * 1e3:.3g} ms{state}>"


def is_tls_alert(data: bytes) -> bool:
    """Return True for a TLS alert (RFC 8446 5.1, 6), which a TLS server can send instead of its handshake."""
    return len(data) == 7 and data[:2] == b"\x15\x03" and data[3:5] == b"\0\2"


def line_end(data: bytes | bytearray) -> int | None:
    """Find the end of the first line.

    Returns:
        The index after its LF; ``None`` while the line is incomplete.
    """
    return data.find(b"\n") + 1 or None


def reply_end(data: bytes | bytearray, start: int = 0) -> int | None:
    """Find the end of an SMTP or FTP reply.

    Args:
        data: What was received so far, from the first byte of the reply on.
        start: The index of a line start up to which the reply is known not to end. It saves work and does not
            change the result.

    Returns:
        The index after the reply's last LF; ``None`` while the reply is incomplete.
    """
    first = line_end(data)
    if first is None or not re.match(_MULTILINE, data):
        return first
    # The code is three digits and needs no escaping.
    last = re.compile(rb"^%b(?: [^\n]*|\r?)\n" % bytes(data[:3]), re.MULTILINE).search(
        data, max(start, first)
    )
    return last.end() if last else None

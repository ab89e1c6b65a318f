"""The Reply that a client receives, and the rules that find the end of a greeting.

Invariants:

- The end depends on the bytes alone, not on how they were split into segments.
- A line ends with LF; a CR before it belongs to the line end. A bare CR does not end a line.
- An SMTP or FTP reply (RFC 5321 4.2.1, RFC 959 4.2) whose first line is a three-digit code and a hyphen ends
  with the line that begins with the same code and a space, or that consists of the code. The lines in between
  are arbitrary and may begin with other codes. Any other first line is the whole reply.
- The end of the stream ends a line, and can thereby end a reply (``ended_by_eof``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

Until: TypeAlias = Literal["eof", "line", "reply"]
UNTIL: tuple[Until, ...] = get_args(Until)

_MULTILINE = re.compile(rb"[0-9]{3}-")


@dataclass(frozen=True, slots=True)
class Reply:
    """A greeting that was received.

    ``str(reply)`` is its text, with undecodable bytes escaped. ``bytes(reply)`` is its data.

    Attributes:
        data: The bytes received, including line ends.
        target: The endpoint's text.
        connect_time: Seconds from the call until the connection (with TLS, the handshake) was complete.
        first_byte_time: Seconds from the call until the first byte arrived; ``None`` without one.
        total_time: Seconds from the call until the reply was complete.
        reset: True if the peer reset the connection after it sent ``data``.
    """

    data: bytes
    target: str
    connect_time: float
    first_byte_time: float | None
    total_time: float
    reset: bool = False

    def __bytes__(self) -> bytes:
        return self.data

    def __str__(self) -> str:
        return self.data.decode(errors="backslashreplace")


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
    if first is None or not _MULTILINE.match(data):
        return first
    # The code is three digits and needs no escaping.
    last = re.compile(rb"^%b(?: [^\n]*|\r?)\n" % bytes(data[:3]), re.MULTILINE).search(
        data, max(start, first)
    )
    return last.end() if last else None


def greeting_end(data: bytes | bytearray, until: Until, start: int = 0) -> int | None:
    """Find the end of a greeting by the rule that ``until`` names.

    Returns:
        The index after the greeting; ``None`` while it is incomplete, and always with ``"eof"``.
    """
    if until == "eof":
        return None
    return line_end(data) if until == "line" else reply_end(data, start)


def ended_by_eof(data: bytes | bytearray, until: Until) -> bool:
    """Return True if ``data`` is a complete greeting when the stream ends after it.

    Only a multi-line reply without its last line is incomplete.
    """
    return until != "reply" or reply_end(data + b"\n") is not None

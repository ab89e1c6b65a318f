r"""Bytes as text: with escapes, as they are typed and printed, and as a hex dump.

Invariants:

- ``unescape(escape(data)) == data`` for any bytes.
- What the other functions return has no character that a terminal obeys or hides: no control character, no
  bidirectional override, no zero-width or private character, no U+2028. ``printable()`` and ``hex_dump()``
  have newlines, ``printable()`` also tabs.
"""

from __future__ import annotations

import re

from greeter.errors import ConfigError

_BYTES = {b"r": b"\r", b"n": b"\n", b"t": b"\t", b"\\": b"\\"}
_ESCAPE = rb"(?s)\\(?:([rnt\\])|x([0-9A-Fa-f]{2})|(x?.?))"
# Control characters that text does not have, as file(1) has it: not BEL, BS, TAB, LF, VT, FF, CR and ESC.
_CONTROL = rb"[\x00-\x06\x0e-\x1a\x1c-\x1f\x7f]"


def unescape(text: str) -> bytes:
    r"""Return the bytes that a text with escapes stands for.

    Args:
        text: Text, which is encoded as UTF-8. The escapes are ``\r``, ``\n``, ``\t``, ``\\`` and ``\xNN`` (a
            byte in hexadecimal), as in ``EHLO client.example\r\n``.

    Raises:
        ConfigError: A backslash begins none of these, or the text cannot be encoded.
    """

    def value(match: re.Match[bytes]) -> bytes:
        name, number, other = match.groups()
        if other is not None:
            wrong = "\\" + other.decode(errors="replace")
            raise ConfigError(f"unknown escape {wrong} in {text}: the escapes are \\r \\n \\t \\\\ \\xNN")
        return _BYTES[name] if name else bytes.fromhex(number.decode())

    try:
        return re.sub(_ESCAPE, value, text.encode(errors="surrogateescape"))
    except UnicodeEncodeError:
        raise ConfigError(f"{text!r} cannot be encoded as UTF-8") from None


def escape(data: bytes) -> str:
    """Return ``data`` as one line of printable text, which ``unescape()`` turns back into ``data``."""
    text = data.replace(b"\\", b"\\\\").decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(c: str) -> str:
    return repr(c)[1:-1] if c in "\r\n\t" else "".join(f"\\x{byte:02x}" for byte in c.encode())


def printable(text: str) -> str:
    """Return ``text`` with its CRLFs as newlines, and with every character escaped that a terminal hides.

    Newlines, tabs and spaces of any width stay.
    """
    return "".join(c if _is_shown(c) else repr(c)[1:-1] for c in text.replace("\r\n", "\n"))


def _is_shown(c: str) -> bool:
    # Python takes no space but " " for printable (str.isprintable). U+2028 and U+2029 are line ends.
    return c.isprintable() or c in "\n\t" or (c.isspace() and c >= "\xa0" and c not in "\u2028\u2029")


def is_utf8(data: bytes) -> bool:
    """Return True if ``data`` is text in UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_binary(data: bytes) -> bool:
    """Return True if ``data`` is no text in any encoding that extends ASCII.

    It has a NUL, or is not UTF-8 and has a control character that text does not have.
    """
    return b"\0" in data or (re.search(_CONTROL, data) is not None and not is_utf8(data))


def hex_dump(data: bytes) -> str:
    """Return ``data`` in lines of 16 bytes: the offset, the bytes in hexadecimal, and as text."""
    lines = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        lines.append(f"{at:08x}  {row[:8].hex(' '):<23}  {row[8:].hex(' '):<23}  |{text}|")
    return "\n".join(lines)

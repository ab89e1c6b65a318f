"""The server's side of one TLS connection, as bytes in and bytes out; the caller moves them.

TLS changes what is sent and nothing else. asyncio's TLS transports have no half-close, and close the
connection when a client sends data after our close_notify, which resets it and can lose the greeting. Here
close_notify (RFC 8446, 6.1) is the last thing that is sent, and the connection is half-closed and lingers
like any other.
"""

from __future__ import annotations

import contextlib
import re
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Bytes that are encrypted at a time: sixteen records.
PIECE_SIZE = 256 * 1024

# What RFC 4514, section 3, has short names for.
_SHORT = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C"}


class TLSSession:
    """One TLS connection, from the handshake to close_notify."""

    __slots__ = ("_incoming", "_outgoing", "_tls")

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def do_handshake(self, received: bytes) -> bool:
        """Go on with the handshake. Returns True when it is complete.

        ``data_to_send`` may have something afterwards, in each case.

        Raises:
            ssl.SSLError: the handshake failed; ``data_to_send`` has the alert for the client.
        """
        self._incoming.write(received)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def data_to_send(self) -> bytes:
        """Returns what has to be sent now, and forgets it."""
        return self._outgoing.read()

    def encrypt(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        """Encrypt ``data``, a piece at a time as they are asked for, and close_notify behind it.

        Returns:
            Each piece, and whether it is the last one. The first also has what ``data_to_send`` had.
        """
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest[:PIECE_SIZE]) :]
            if rest:
                yield self._outgoing.read(), False
        with contextlib.suppress(ssl.SSLError):  # it wants the client's close_notify, which we do not
            self._tls.unwrap()
        yield self._outgoing.read(), True

    @property
    def version(self) -> str:
        """As in ``TLSv1.3``."""
        return self._tls.version() or ""

    @property
    def subject(self) -> str:
        """The subject of the client's certificate, as in ``CN=alice,O=Example``."""
        return describe_peer(self._tls.getpeercert())


def describe_peer(certificate: Mapping[str, object] | None) -> str:
    """The subject of a client's certificate, as in ``CN=alice,O=Example`` (RFC 4514); empty without one."""
    if not certificate:
        return ""
    subject = certificate.get("subject")
    assert isinstance(subject, tuple)
    parts = (
        "+".join(f"{_SHORT.get(name, name)}={_escape(value)}" for name, value in part) for part in subject
    )
    return ",".join(reversed([*parts]))


def _escape(value: str) -> str:
    """A value in a name: what could pass for another part of it is escaped (RFC 4514, 2.4)."""
    escaped = re.sub(r'[\\"+,;<>=]|^[ #]| $', r"\\\g<0>", value)
    return escaped.replace("\0", "\\00")

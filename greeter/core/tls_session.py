"""The server side of a TLS connection over memory buffers: bytes in, bytes out. The caller does the I/O.

asyncio's TLS transports have no half-close. They close the connection when a client sends data after our
close_notify, which resets the connection and can lose the greeting. Here, close_notify (RFC 8446 6.1) is the
last record sent. The connection is then half-closed and lingers like one without TLS.
"""

from __future__ import annotations

import contextlib
import re
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Bytes to encrypt at a time: one record (RFC 8446, 5.1). What waits for a slow client is at most twice that,
# because the buffer that it was encrypted into does not shrink. Larger pieces take as much CPU.
PIECE_SIZE = 16 * 1024

# Short names of attribute types (RFC 4514 3).
_SHORT_NAMES = {
    "commonName": "CN",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
}


class TLSSession:
    """One TLS connection, from the handshake to close_notify."""

    __slots__ = ("_incoming", "_outgoing", "_tls")

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def do_handshake(self, received: bytes) -> bool:
        """Continue the handshake. Afterwards, even if this raises, ``data_to_send`` must be sent.

        Args:
            received: The bytes received since the last call.

        Returns:
            True if the handshake is complete.

        Raises:
            ssl.SSLError: The handshake failed. ``data_to_send`` has the alert for the client.
        """
        self._incoming.write(received)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def data_to_send(self) -> bytes:
        """Return the bytes to send, and remove them from the buffer."""
        return self._outgoing.read()

    def encrypt(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        """Encrypt ``data`` and close_notify, lazily and piece by piece.

        Yields:
            A piece to send, and True if it is the last one. The first piece includes what ``data_to_send``
            would have returned.
        """
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest[:PIECE_SIZE]) :]
            if rest:
                yield self._outgoing.read(), False
        with contextlib.suppress(ssl.SSLError):  # raised as the client's close_notify is missing
            self._tls.unwrap()
        yield self._outgoing.read(), True

    @property
    def version(self) -> str:
        """The TLS version, as in ``TLSv1.3``."""
        return self._tls.version() or ""

    @property
    def subject(self) -> str:
        """The subject of the client's certificate, as in ``CN=alice,O=Example``."""
        return describe_peer(self._tls.getpeercert())


def describe_peer(certificate: Mapping[str, object] | None) -> str:
    """Format the subject of a certificate, as in ``CN=alice,O=Example`` (RFC 4514).

    Args:
        certificate: What ``SSLObject.getpeercert()`` returned.

    Returns:
        The subject; empty without a certificate.
    """
    if not certificate:
        return ""
    subject = certificate.get("subject")
    assert isinstance(subject, tuple)
    parts = (
        "+".join(f"{_SHORT_NAMES.get(name, name)}={_escape(value)}" for name, value in part)
        for part in subject
    )
    return ",".join(reversed([*parts]))


def _escape(value: str) -> str:
    """Escape the special characters of an attribute value (RFC 4514 2.4)."""
    escaped = re.sub(r'[\\"+,;<>=]|^[ #]| $', r"\\\g<0>", value)
    return escaped.replace("\0", "\\00")

"""TLS for one client, as bytes in and bytes out; somebody else moves them.

The law: TLS changes what is written and nothing else. asyncio's TLS transports have no half-close, and
close the connection when a client talks on after close_notify, which resets it and can lose the greeting.
Here close_notify (RFC 8446, 6.1) is the last thing that is written, and the plain transport half-closes,
discards and lingers behind it as it does for everybody.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING

from greeter.tls import describe_peer

if TYPE_CHECKING:
    from collections.abc import Iterator

# Bytes that are sealed at a time: sixteen records.
PIECE = 256 * 1024


class Seal:
    """The server's side of one TLS connection."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def shake(self, received: bytes) -> bool:
        """Go on with the handshake; True when it is done. ``to_send`` has something afterwards, mostly.

        Raises ssl.SSLError when there will be none; ``to_send`` has the alert for the client then.
        """
        self._incoming.write(received)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def to_send(self) -> bytes:
        """What has to be written now."""
        return self._outgoing.read()

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """``data`` and close_notify, sealed piece by piece as they are asked for."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest[:PIECE]) :]
            if rest:
                yield self._outgoing.read()
        with contextlib.suppress(ssl.SSLError):  # it wants the client's close_notify, which we do not
            self._tls.unwrap()
        yield self._outgoing.read()

    @property
    def version(self) -> str:
        """As in ``TLSv1.3``."""
        return self._tls.version() or ""

    @property
    def subject(self) -> str:
        """Whom the client's certificate names, as in ``CN=alice,O=Example``."""
        return describe_peer(self._tls.getpeercert())

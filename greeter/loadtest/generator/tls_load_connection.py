"""A connection under test that makes a TLS handshake before its greeting."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress

from greeter.loadtest.generator.load_connection import TRUNCATED, WOULD_BLOCK, LoadConnection


class TLSLoadConnection(LoadConnection):
    """A connection with a TLS handshake before the greeting.

    ``sock`` is replaced by an SSLSocket when it is connected. ``handshake_done`` exists from then on.
    """

    __slots__ = ("handshake_done",)

    def on_event(self, mask: int, now: float) -> str | None:
        outcome = super().on_event(mask, now)
        if outcome is None and self.connected and not isinstance(self.sock, ssl.SSLSocket):
            return self.read(mask, now)  # start the handshake: in TLS the client sends first
        return outcome

    def _prepare_to_send(self) -> None:
        """Set ``unsent`` to the PROXY header, which precedes the handshake."""
        self.unsent = self._proxy_header()

    def read(self, mask: int, now: float) -> str | None:
        try:
            self._do_handshake()
        except WOULD_BLOCK:
            return None
        except OSError as error:
            return self.classify_error(error)
        if self.unsent:
            self._send()
        return super().read(mask, now)

    def classify_error(self, error: OSError) -> str:
        # After a reset, whose error ``on_event`` has cleared, OpenSSL reports an unexpected end.
        if isinstance(error, ssl.SSLEOFError) and (self.error or self._handshake_done()):
            self.error, self.ended = self.error or TRUNCATED, True
            return self.classify()
        if isinstance(error, ssl.SSLError):
            self.error_text = str(error.reason or error).lower().replace("_", " ")
            return "tls_error"
        return super().classify_error(error)

    def close(self) -> None:
        if self.connected and isinstance(self.sock, ssl.SSLSocket):
            with suppress(OSError, ValueError):  # send close_notify if that does not block
                self.sock.unwrap()
        super().close()

    def _do_handshake(self) -> None:
        """Start or continue the handshake. Raises SSLWantReadError or SSLWantWriteError until it is done."""
        if not isinstance(self.sock, ssl.SSLSocket):
            target = self.spec.target
            assert target.ssl_context is not None
            plain = socket.socket(fileno=self.sock.detach())
            self.sock = plain
            plain.setblocking(False)
            self.sock = target.ssl_context.wrap_socket(
                plain,
                server_hostname=target.server_name,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=False,  # tell an end without close_notify from one with it
            )
            self.handshake_done = False
        if not self.handshake_done:
            self.sock.do_handshake()
            self.handshake_done = True
            self.unsent = self.spec.send

    def _handshake_done(self) -> bool:
        return isinstance(self.sock, ssl.SSLSocket) and self.handshake_done

"""What to check, and how: the target, what a client says, and what may be done to the service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from greeter.core.replies import Until

if TYPE_CHECKING:
    import ssl

    from greeter.core.endpoint import Endpoint
    from greeter.core.proxy_protocol import ProxyVersion


@dataclass(frozen=True, slots=True)
class CheckPlan:
    """The arguments of ``greeter.check()``.

    Attributes:
        target: The service.
        profile: The name of the profile that has set what a client says.
        send: What a client says before it is greeted, if the service waits for that.
        send_much: What a client says instead that goes on to send 200 kB; ``send`` if empty.
        hello: What a client says that speaks first; b"" for a line of junk.
        until: What ends the greeting.
        expect: What the greeting must contain.
        begins: What a greeting begins with, one of these; anything else is a refusal. All do if empty.
        polite: True if the protocol makes a client wait for the greeting (SMTP, FTP, MySQL).
        tls: The context for TLS; None without.
        server_name: The name to verify in the certificate, if not the target's host.
        proxy_protocol: The version of the PROXY header that every connection begins with; None without.
        pid: The process that listens.
        restart: The command that reloads the service.
        stop: The command that stops it.
        start: The command that starts it again.
        only: The ids of the checks to run; all that apply if empty.
        skip: The ids of checks to leave out.
        expect_fail: The ids of checks that are known to fail.
        strict: True if a *should* counts as a *must*.
        fast: True to leave out the checks that wait in the background.
        timeout: How long a client waits for its greeting, in seconds.
        idle_limit: How long a service may keep an idle client, in seconds.
        heavy: True to run heavy checks off loopback too.
    """

    target: Endpoint
    profile: str = "raw"
    send: bytes = b""
    send_much: bytes = b""
    hello: bytes = b""
    until: Until = Until("eof")
    expect: bytes = b""
    begins: tuple[bytes, ...] = ()
    polite: bool = False
    tls: ssl.SSLContext | None = None
    server_name: str | None = None
    proxy_protocol: ProxyVersion | None = None
    pid: int | None = None
    restart: str | None = None
    stop: str | None = None
    start: str | None = None
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    expect_fail: tuple[str, ...] = ()
    strict: bool = False
    fast: bool = False
    timeout: float = 5.0
    idle_limit: float = 30.0
    heavy: bool = False

    @property
    def datagrams(self) -> bool:
        """True if the target is a service that answers datagrams."""
        return self.target.kind == "udp"

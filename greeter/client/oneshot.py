"""The one-shot client: connect, receive the greeting, close.

Invariants:

- Bytes that the peer sent are never lost. asyncio's StreamReader discards unread bytes when the connection is
  reset (cpython #75044), and a server that closes with unread input resets the connection. So ``greet()``
  has receivers of its own. (With TLS, what is unread when a write fails is lost.)
- Every wait has a deadline.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING

from greeter.client import datagram_exchange
from greeter.client.arguments import (
    CONNECT_TIMEOUT,
    MAX_BYTES,
    TIMEOUT,
    check_datagrams,
    check_exchange,
    check_wait,
    destination,
    name_to_verify,
)
from greeter.client.connecting import Connected, begin_to_connect, connect, connect_errors, is_alert
from greeter.client.socket_receiver import SocketReceiver
from greeter.client.tls_receiver import over_tls
from greeter.core.endpoint import DEFAULT_HOST
from greeter.core.replies import Reply, Until, is_tls_alert
from greeter.errors import (
    ConfigError,
    ConnectFailed,
    GreetFailed,
    GreetReset,
    GreetTimeout,
    NoGreeting,
    ReplyTooLarge,
    UnexpectedGreeting,
)

if TYPE_CHECKING:
    import socket

    from greeter.client.arguments import TLS, Exchange, Target
    from greeter.client.receiver import Receiver
    from greeter.client.tls_receiver import TLSReceiver
    from greeter.core.endpoint import Endpoint
    from greeter.core.proxy_protocol import ProxyVersion


async def greet(
    target: Target = DEFAULT_HOST,
    port: int | str | None = None,
    *,
    host: str | int | Endpoint | None = None,
    path: str | None = None,
    sock: socket.socket | None = None,
    ssl: TLS = None,
    server_hostname: str | None = None,
    timeout: float = TIMEOUT,
    connect_timeout: float = CONNECT_TIMEOUT,
    max_bytes: int = MAX_BYTES,
    until: str | Until = "eof",
    send: bytes | bytearray | memoryview | None = None,
    expect: str | bytes | None = None,
    proxy_protocol: ProxyVersion | None = None,
    wait: float = 0.0,
) -> Reply:
    r"""Connect, receive the greeting, close, and return the greeting.

    The connection is closed when this returns or raises, and also if it is cancelled.

    A service for datagrams (``"udp:127.0.0.1:9999"``, RFC 865) is asked with one datagram and again after
    0.5, 1, 2, … seconds, until it replies. The reply is one datagram. There is no TLS, PROXY header or
    ``until``.

    Args:
        target: An Endpoint, the text of one (``"127.0.0.1:25"``, ``"[::1]:25"``, ``"unix:/path"``,
            ``"unix:@name"``, ``"fd:3"``, ``"udp:[::1]:17"``), or a host: a name or an address.
        port: A port number or a service name, if the target is a host. The default is 9999.
        host: Keyword alternative to ``target``.
        path: The path of a Unix socket (``"@name"``: an abstract one), instead of a target.
        sock: A connected socket, instead of a target. It is closed with the connection.
        ssl: True or an SSLContext for TLS.
        server_hostname: The name to verify in the certificate, if it is not the target's host.
        timeout: Seconds for the whole call; with ``wait``, for one attempt.
        connect_timeout: Seconds for connecting, including the TLS handshake; limited by ``timeout``.
        max_bytes: The size limit of the greeting in bytes.
        until: What ends the greeting. The end of the stream always does.

            - ``"eof"``: nothing else.
            - ``"line"``: the end of a line, from a service that keeps the connection open (SSH).
            - ``"reply"``: the last line of an SMTP or FTP reply (RFC 5321 4.2.1, RFC 959 4.2).
            - ``"text:TEXT"``: the first occurrence of TEXT, in which ``\r \n \t \\ \xNN`` are escapes.
            - ``"bytes:N"``: the N-th byte.
            - ``"idle:DUR"``: the last byte before a pause, as in ``"idle:300ms"``. No time includes it.
        send: Bytes to send as soon as the connection is complete; the payload of each datagram. Without it, a
            datagram has 171 bytes, a third of RFC 865's 512: no service needs more to be no amplifier.
        expect: Text or bytes that the greeting must contain.
        proxy_protocol: ``"v1"`` or ``"v2"`` to send a PROXY header first, with the addresses of this
            connection, to a service that requires one.
        wait: Seconds for which to retry until the service greets. The pause between attempts doubles from
            20 ms to 1 s. The last attempt is made when the time is up.

    Returns:
        The Reply. It is empty, and thus false, if the peer closed without sending. ``reset`` is set if the
        peer reset the connection after the greeting, ``truncated`` if TLS ended without close_notify.

    Raises:
        ConfigError: An argument is invalid, or arguments contradict each other.
        ConnectFailed: Connecting failed, or the peer speaks TLS on a connection without it, or refused the
            client certificate. A datagram was refused (ICMP port unreachable).
        GreetTimeout: A deadline passed.
        GreetReset: The peer reset the connection before the first byte, or in the middle of a greeting.
        NoGreeting: The peer closed in the middle of a greeting, or without a byte (only with ``expect``
            or ``wait``).
        ReplyTooLarge: The greeting is longer than ``max_bytes``.
        UnexpectedGreeting: The greeting does not contain ``expect``.

    Example::

        reply = await greeter.greet("mail.example", 25, until="reply", expect="220 ", wait=5)
    """
    if host is not None:
        if target != DEFAULT_HOST:
            raise ConfigError("give one of target and host")
        target = host
    where = destination(target, port, path, sock)
    exchange = check_exchange(ssl, timeout, connect_timeout, max_bytes, until, send, expect, proxy_protocol)
    check_datagrams(where, exchange)
    name = name_to_verify(where, ssl, server_hostname)
    check_wait(wait, where)
    if not wait:
        return await exchange_once(where, exchange, name, sock)
    return await exchange_within(wait, where, exchange, name)


async def exchange_within(seconds: float, target: Endpoint, exchange: Exchange, name: str | None) -> Reply:
    """Call ``exchange_once()`` until it receives a greeting, for up to ``seconds``. See ``greet()``."""
    end = perf_counter() + seconds
    pause = 0.02
    while True:
        try:
            reply = await exchange_once(target, exchange, name)
            if not reply:
                raise NoGreeting(str(target))
            return reply
        except GreetFailed:
            if perf_counter() >= end:
                raise
        await asyncio.sleep(min(pause, max(0.0, end - perf_counter())))
        pause = min(2 * pause, 1.0)


async def exchange_once(
    target: Endpoint, exchange: Exchange, name: str | None, sock: socket.socket | None = None
) -> Reply:
    """Connect, exchange and close.

    Args:
        target: The endpoint.
        exchange: What to say and to receive.
        name: The name to verify in the certificate.
        sock: A connected socket, instead of connecting to ``target``.

    Returns:
        As ``greet()``, whose exceptions this raises.
    """
    if target.kind == "udp":
        return await datagram_exchange.ask(target, exchange)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + exchange.timeout
    limit = min(exchange.connect_timeout, exchange.timeout)
    receiver: SocketReceiver | TLSReceiver
    start = perf_counter()
    with connect_errors(target, limit) as progress:
        attempt = begin_to_connect(target)
        if attempt is None or attempt.code or exchange.ssl or exchange.proxy_protocol is not None:
            async with asyncio.timeout(limit):
                connected = await connect(
                    target, sock, exchange.proxy_protocol, tls=bool(exchange.ssl), attempt=attempt
                )
                if exchange.ssl:
                    progress.phase = "handshake"
                    receiver = await over_tls(connected.sock, exchange, name)
        else:
            connected = Connected(attempt.sock)
        if not exchange.ssl:
            receiver = SocketReceiver(connected, exchange)
    timer = loop.call_at(deadline, receiver.expire)
    try:
        if exchange.send:
            receiver.send(exchange.send)
        await receiver.done
    finally:
        timer.cancel()
        receiver.close()
    end = receiver.last_byte or perf_counter()
    data, first_byte = receiver.reply(), receiver.first_byte
    _check(data, receiver, str(target), exchange)
    return Reply(
        data,
        str(target),
        connect_time=receiver.connected - start,
        first_byte_time=None if first_byte is None else first_byte - start,
        total_time=end - start,
        reset=receiver.error is not None,
        truncated=receiver.truncated,
    )


def _check(data: bytes, receiver: Receiver, target: str, exchange: Exchange) -> None:
    """Raise what ``greet()`` raises for what was received."""
    if receiver.timed_out:
        raise GreetTimeout(target, "end" if data else "first byte", exchange.timeout, data)
    if len(data) > exchange.max_bytes:
        raise ReplyTooLarge(target, exchange.max_bytes, data[: exchange.max_bytes])
    if not exchange.ssl and is_tls_alert(data):
        raise ConnectFailed(target, "the server speaks TLS")
    if is_alert(receiver.error) and not data:
        raise ConnectFailed(target, receiver.error) from receiver.error
    if receiver.error is not None and (not data or receiver.incomplete):
        raise GreetReset(target, data) from receiver.error
    if receiver.incomplete or (exchange.expect is not None and not data):
        raise NoGreeting(target, data)
    if exchange.expect is not None and exchange.expect not in data:
        raise UnexpectedGreeting(target, exchange.expect, data)

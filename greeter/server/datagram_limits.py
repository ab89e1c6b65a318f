"""What a service with datagrams logs at its start and on a reload: limits of RFC 865 and of the kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from greeter.core.datagram_sizes import DATAGRAM_GREETING
from greeter.server.accept_pause import logger
from greeter.system.datagram_socket import RECEIVE_BUFFER, receive_buffer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from greeter.core.server_config import ServerConfig
    from greeter.system.listeners import Listener


def log_datagram_limits(config: ServerConfig, listeners: Iterable[Listener]) -> None:
    """Log a greeting that is larger than it should be, and receive buffers that the kernel has capped.

    Args:
        config: The configuration of the server.
        listeners: Its listeners, of any kind.
    """
    ours = [listener for listener in listeners if listener.endpoint.kind == "udp"]
    log_large_greeting(config, [listener.address for listener in ours])
    for listener in ours:
        if not listener.inherited and (buffer := receive_buffer(listener.sock)) < RECEIVE_BUFFER:
            logger.info(
                "the receive buffer of %s has %d bytes instead of %d, because of net.core.rmem_max: "
                "a longer burst of datagrams is dropped",
                listener.address,
                buffer,
                RECEIVE_BUFFER,
                extra={"event": "receive_buffer", "address": listener.address},
            )


def log_large_greeting(config: ServerConfig, addresses: Iterable[str]) -> None:
    """Log a greeting that is larger than it should be in a datagram.

    Args:
        config: The configuration of the server.
        addresses: The addresses that it listens on. Nothing is logged if none is for datagrams.
    """
    size = len(config.greeting.fixed or b"")
    if size > DATAGRAM_GREETING and any(address.startswith("udp:") for address in addresses):
        logger.warning(
            "the greeting has %d bytes, and a datagram at most %d (RFC 865): networks fragment or drop more",
            size,
            DATAGRAM_GREETING,
            extra={"event": "large_greeting"},
        )

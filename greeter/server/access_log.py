"""The access log: what is written for each client that is admitted."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from greeter.core.address import endpoint_text, format_peer

if TYPE_CHECKING:
    from greeter.core.address import Address
    from greeter.core.server_config import AccessLog, ServerConfig

logger = logging.getLogger("greeter")


def log_connection(address: Address) -> None:
    """A record for each client on the logger "greeter", at INFO."""
    extra = {"event": "connection", "peer": endpoint_text(address)}
    logger.info("Got a connection from %s", format_peer(address), extra=extra)


def choose_access_log(access_log: bool | AccessLog) -> AccessLog | None:
    """What is called for each client: the callable itself, or ``log_connection`` if that would be seen."""
    if isinstance(access_log, bool):
        return log_connection if access_log and logger.isEnabledFor(logging.INFO) else None
    return access_log


def log_datagram(address: Address) -> None:
    """A record for each datagram on the logger "greeter", at INFO."""
    extra = {"event": "datagram", "peer": endpoint_text(address)}
    logger.info("Got a datagram from %s", format_peer(address), extra=extra)


def choose_datagram_log(config: ServerConfig) -> AccessLog | None:
    """What is called for each datagram; None if it would not be seen."""
    if config.datagram_log is not None:
        return config.datagram_log
    chosen = choose_access_log(config.access_log)
    return log_datagram if chosen is log_connection else chosen

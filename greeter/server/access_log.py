"""The access log: what is written for each client that is admitted."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from greeter.core.address import endpoint_text, format_peer

if TYPE_CHECKING:
    from greeter.core.address import Address
    from greeter.core.server_config import AccessLog

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

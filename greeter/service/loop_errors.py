"""What the event loop reports because no caller handles it, such as that a socket cannot be watched."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from greeter.errors import os_error_text
from greeter.server.accept_pause import LogLimit

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger("greeter")


def log_loop_errors(loop: asyncio.AbstractEventLoop) -> None:
    """Log an error of the system in one line, at most once per second; all else as asyncio does.

    asyncio watches the sockets of its transports in callbacks of its own. Without memory (ENOMEM, ENOSPC:
    epoll_ctl(2)) these fail, and nothing but the deadline of the connection is left to close it.

    What a client did to its connection is counted where it is served. A future of a stream can still have it
    when it is collected, also after the event loop was closed and the log with it.
    """
    limit = LogLimit(loop)

    def on_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError):
            loop.default_exception_handler(context)
        elif not isinstance(error, ConnectionError) and not loop.is_closed() and limit.allows("loop"):
            text = os_error_text(error)
            logger.error("the event loop failed: %s", text, extra={"event": "loop_error", "error": text})

    loop.set_exception_handler(on_error)

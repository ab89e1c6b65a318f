"""What a worker does: serve the sockets of its parent, until the parent retires it or is gone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from greeter.server import start_server
from greeter.service.channel import PARENT_GONE, RETIRED, STOPPED
from greeter.service.snapshot import Counters
from greeter.system.listeners import close_inherited

if TYPE_CHECKING:
    from greeter.core.server_config import ServerConfig
    from greeter.server import Server
    from greeter.service.channel import WorkerChannel

# A connection is closed up to so many seconds after its deadline.
CLOSE_MARGIN = 0.5


async def serve_as_worker(channel: WorkerChannel, config: ServerConfig) -> int:
    """Serve inherited sockets as a worker, until the parent retires it or is gone.

    Args:
        channel: The channel to the parent.
        config: The configuration of this worker.

    Returns:
        The exit code.

    Raises:
        GreeterError: The server cannot start.
    """
    server = await start_server(config, channel.endpoints, worker=True)
    close_inherited(channel.endpoints)
    if channel.counters is not None:
        server.stats.move_to(channel.counters)
    stop_reason = channel.open(lambda: Counters.of(server.stats, datagrams_dropped=0).to_json())
    channel.ready(server.max_connections)
    reason = await stop_reason
    if reason == RETIRED:
        await _drain_replaced(server, channel)
    else:
        # When the whole service stops, so do all that accept from the sockets of the parent.
        await server.drain(last=reason in (STOPPED, PARENT_GONE) and not channel.shared)
    channel.close()
    return 0


async def _drain_replaced(server: Server, channel: WorkerChannel) -> None:
    """Drain while other workers serve on: open connections have the time that they had without a reload.

    Only a stop has a deadline of its own; if one comes meanwhile, that applies.
    """
    draining = asyncio.create_task(server.drain(server.config.connection_timeout + CLOSE_MARGIN))
    stopped = asyncio.create_task(channel.stopped())
    await asyncio.wait((draining, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not draining.done():
        await server.drain()
    await draining

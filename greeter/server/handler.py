"""``greeter.handler``: a lossless greeting for an asyncio server of the user's own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from greeter.core.address import endpoint_text, unix_name
from greeter.core.greeting import DEFAULT_GREETING, Greeting, GreetingSource
from greeter.core.server_config import GREET_TIMEOUT, LINGER_TIMEOUT, AccessLog, ServerConfig
from greeter.server.conversation import Conversation
from greeter.server.stream_connection import serve_streams
from greeter.server.tracker import ConnectionTracker

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter

    from greeter.server.stream_connection import ClientConnected


def handler(
    greeting: GreetingSource = DEFAULT_GREETING,
    *,
    greet_timeout: float = GREET_TIMEOUT,
    linger_timeout: float = LINGER_TIMEOUT,
    access_log: bool | AccessLog = True,
) -> ClientConnected:
    """Returns a ``client_connected_cb`` that greets every client of an asyncio server without losing one.

    The server is yours: so are its sockets, its limits and its stop. With ``ssl=`` it works over asyncio's
    own TLS transport. One handler can serve several servers.

    Args:
        greeting: text with ``$names``, bytes, a callable that gets a Peer, or a Greeting.
        greet_timeout: seconds from accept until the kernel has the last byte.
        linger_timeout: seconds after that until the client must have closed.
        access_log: True writes a line for each client to the logger "greeter", at INFO; a callable gets the
            client's address instead; False writes nothing.

    Raises:
        ConfigError: a greeting or a time-out that cannot be right.

    Example::

        server = await asyncio.start_server(greeter.handler("Hello $host"), "127.0.0.1", 9999)
        async with server:
            await server.serve_forever()
    """
    config = ServerConfig(
        greeting=Greeting(greeting),
        greet_timeout=greet_timeout,
        linger_timeout=linger_timeout,
        access_log=access_log,
    )
    conversation: Conversation | None = None

    def client_connected(reader: StreamReader, writer: StreamWriter) -> None:
        nonlocal conversation
        if conversation is None or conversation.tracker.loop is not asyncio.get_running_loop():
            conversation = Conversation(ConnectionTracker(config))
        name = writer.get_extra_info("sockname")
        server = (endpoint_text(name) or "") if isinstance(name, tuple) else f"unix:{unix_name(name)}"
        serve_streams(conversation, server, reader, writer)

    return client_connected

"""Serving: accept connections, and take each from its preamble to the lingering close.

The story, from the top: ``serve()`` (serving.py) opens listeners and builds a Server (server.py), which
accepts on one of two paths. The direct path (direct.py, acceptor.py, poller.py, connection.py, batch.py)
works on the accepted sockets; the streams path (streams.py) is ``asyncio.start_server``. Both run the same
Conversation (conversation.py), and both leave what is open, when it is due and what is counted to the
ConnectionTracker (tracker.py, timeouts.py, lingering.py). Beside them, the datagram path (datagrams.py)
answers datagrams.

Must not import: the client, the load tester, and all that runs a process (service, workers, command line).
"""

from greeter.server.acceptor import choose_path
from greeter.server.datagram_limits import log_datagram_limits, log_large_greeting
from greeter.server.handler import handler
from greeter.server.server import Server
from greeter.server.serving import Serving, serve, start_server

__all__ = [
    "Server",
    "Serving",
    "choose_path",
    "handler",
    "log_datagram_limits",
    "log_large_greeting",
    "serve",
    "start_server",
]

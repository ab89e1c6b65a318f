"""Serving: accept connections, and take each from its preamble to the lingering close.

The story, from the top: ``serve()`` (server.py) opens listeners and builds a Server, which accepts on one of
two paths. The direct path (direct.py, acceptor.py, poller.py, connection.py, batch.py) works on the accepted
sockets; the streams path (streams.py) is ``asyncio.start_server``. Both run the same Conversation
(conversation.py), and both leave what is open, when it is due and what is counted to the ConnectionTracker
(tracker.py, timeouts.py, lingering.py).

Must not import: the client, the load tester, and all that runs a process (service, workers, command line).
"""

from greeter.server.handler import handler
from greeter.server.server import Server, Serving, choose_path, serve, start_server

__all__ = ["Server", "Serving", "choose_path", "handler", "serve", "start_server"]

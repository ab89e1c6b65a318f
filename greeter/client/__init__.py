"""The client: connect, receive the greeting, close.

The story, from the top: ``greet_many()`` (many.py) greets many targets as ``greet()`` (oneshot.py) greets
one: with a protocol of its own, which receives the greeting and closes. ``open_connection()``
(streamclient.py) receives the greeting and returns it with asyncio's streams for the rest of the
conversation. All of them validate their arguments in arguments.py and connect in connecting.py.

Must not import: the server, and all that is above it.
"""

from greeter.client.many import greet_many
from greeter.client.oneshot import greet
from greeter.client.streamclient import open_connection
from greeter.core.replies import Reply

__all__ = ["Reply", "greet", "greet_many", "open_connection"]

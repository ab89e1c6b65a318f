"""The client: connect, receive the greeting, close.

The story, from the top: ``greet()`` (oneshot.py) receives one greeting with a protocol of its own and closes.
``open_connection()`` (streamclient.py) receives the greeting and returns it with asyncio's streams for the
rest of the conversation. Both use connecting.py to validate their arguments and to connect.

Must not import: the server, and all that is above it.
"""

from greeter.client.many import greet_many
from greeter.client.oneshot import greet
from greeter.client.streamclient import open_connection
from greeter.core.replies import Reply

__all__ = ["Reply", "greet", "greet_many", "open_connection"]

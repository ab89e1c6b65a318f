"""Being greeted: connect, receive the greeting, close.

The story, from the top: ``greet()`` (oneshot.py) takes a whole reply with a protocol of its own;
``open_connection()`` (streamclient.py) takes the first reply of a conversation and gives asyncio's streams
for the rest. Both check their arguments and connect by connecting.py.

Must not import: the server, and all that is above it.
"""

from greeter.client.oneshot import greet, greet_within
from greeter.client.streamclient import open_connection
from greeter.core.replies import Reply

__all__ = ["Reply", "greet", "greet_within", "open_connection"]

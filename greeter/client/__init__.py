"""The client."""

from greeter.client.client import greet, greet_within
from greeter.client.streamclient import open_connection
from greeter.core.replies import Reply

__all__ = ["Reply", "greet", "greet_within", "open_connection"]

"""The client: connect, receive the greeting, close.

The story, from the top: ``greet_many()`` (many.py) greets many targets as ``greet()`` (oneshot.py) greets
one: a receiver (receiver.py) takes the greeting from the socket (socket_receiver.py) or, with TLS, from a
transport (tls_receiver.py); a service for datagrams is asked in datagram_exchange.py. ``open_connection()``
(streamclient.py) receives the greeting and returns it with asyncio's streams for the rest of the
conversation. ``discover()`` (discovery.py) finds services by a broadcast. All of them validate their
arguments in arguments.py and connect in connecting.py.

Must not import: the server, and all that is above it.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from greeter.client.discovery import DiscoveredService, discover
    from greeter.client.many import greet_many
    from greeter.client.oneshot import greet
    from greeter.client.streamclient import open_connection
    from greeter.core.replies import Reply

__all__ = ["DiscoveredService", "Reply", "discover", "greet", "greet_many", "open_connection"]

_MODULES = {
    "DiscoveredService": "greeter.client.discovery",
    "Reply": "greeter.core.replies",
    "discover": "greeter.client.discovery",
    "greet": "greeter.client.oneshot",
    "greet_many": "greeter.client.many",
    "open_connection": "greeter.client.streamclient",
}


def __getattr__(name: str) -> object:
    """Import a name on first use, so that ``greet()`` alone loads no more than it needs (PEP 562)."""
    import importlib

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

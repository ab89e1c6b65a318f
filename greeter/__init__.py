"""greeter: accept, say the first byte, close; and lose nobody.

``serve`` greets whoever connects, ``greet`` is greeted. Both run in your event loop, and importing
them loads nothing but the standard library.

The package is layered, and imports go down only::

    cli                          reads options, prints, exits
    service, demo                signals, logs, the life of a process
    server, client               asyncio: two halves that never import each other
    reception, stream            what happens to one client
    listeners                    sockets
    errors, endpoint, greeting,  pure: no socket, no loop, no clock
    deadlines, stats
"""

from typing import TYPE_CHECKING

from greeter.client import Reply, greet, greet_within
from greeter.endpoint import Endpoint
from greeter.errors import (
    ConfigError,
    ConnectFailed,
    GreeterError,
    GreetFailed,
    GreetingError,
    GreetReset,
    GreetTimeout,
    ListenFailed,
    MissingExtra,
    ProxyProtocolError,
    ReplyTooLarge,
)
from greeter.greeting import Greeting, Peer
from greeter.server import Server, serve
from greeter.stats import ServerStats

if TYPE_CHECKING:
    from greeter.loadtest import LoadPlan, LoadReport, Threshold, load

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "ConnectFailed",
    "Endpoint",
    "GreetFailed",
    "GreetReset",
    "GreetTimeout",
    "GreeterError",
    "Greeting",
    "GreetingError",
    "ListenFailed",
    "LoadPlan",
    "LoadReport",
    "MissingExtra",
    "Peer",
    "ProxyProtocolError",
    "Reply",
    "ReplyTooLarge",
    "Server",
    "ServerStats",
    "Threshold",
    "greet",
    "greet_within",
    "load",
    "serve",
]


def __getattr__(name: str) -> object:
    """The load tester is loaded when it is first used (PEP 562): most programs never do."""
    if name in ("LoadPlan", "LoadReport", "Threshold", "load"):
        from greeter import loadtest

        return getattr(loadtest, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""greeter: accept, say the first byte, close; and lose nobody.

``serve`` greets whoever connects, ``greet`` is greeted. Both run in your event loop, and importing
them loads nothing but the standard library.

The package is layered, and imports go down only::

    cli, startup                  prints and exits; which kind of process to be
    parent, service, workers,     the life of a process
    demo, loadcommand
    commandline, options, values  what it was asked for
    loadtest                      many clients, and what became of them
    server, client                asyncio: two halves that never import each other
    paths, instant, stream,       what happens to one client, from accept to close
    connection, acceptor,
    loopserver, vestibule
    reception, parking            who is here, and until when
    listeners, handover, loops,   the system: sockets, transports, signals, files
    signals, tls, systemd, ...
    errors, endpoint, greeting,   pure: no socket, no loop, no clock
    limits, deadlines, stats, ...
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
    from greeter.limits import Limits
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
    "Limits",
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


# What most programs never use, and what would make up a third of the time that importing takes.
_LATER = {
    "Limits": "greeter.limits",
    "LoadPlan": "greeter.loadtest",
    "LoadReport": "greeter.loadtest",
    "Threshold": "greeter.loadtest",
    "load": "greeter.loadtest",
}


def __getattr__(name: str) -> object:
    """Import the rest when it is first used (PEP 562)."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_LATER[name]), name)
    globals()[name] = value
    return value

"""A TCP greeting server, an async client and a load tester.

- ``serve`` accepts connections, sends each a greeting and closes it without losing data.
- ``handler`` does the same in an ``asyncio.start_server`` of your own.
- ``greet`` receives a greeting. ``open_connection`` also returns the open connection, for what follows.
- ``load`` measures a greeting service.

They run in your event loop. Importing greeter loads nothing but the standard library; each name loads its
module when it is first used.

The package consists of rooms, and imports go down this list only::

    cli        parse a command, run it, print, exit
    service    a process that serves: signals, reload, workers, logging, metrics, systemd
    config     every option once, its sources and checks
    loadtest   schedule connections, measure them, report
    server     accept connections, and take each from its preamble to the lingering close
    client     connect, receive the greeting, close
    system     listening sockets, event loops, TLS contexts, signals, descriptors
    core       values and rules without I/O
    errors     the exceptions
"""

TYPE_CHECKING = False  # what checkers take for typing's; loading that would take longer than all of this
if TYPE_CHECKING:
    from greeter.client.oneshot import greet, greet_within
    from greeter.client.streamclient import open_connection
    from greeter.core.admission import Limits
    from greeter.core.endpoint import Endpoint
    from greeter.core.greeting import Greeting, Peer
    from greeter.core.replies import Reply
    from greeter.core.stats import ServerStats
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
        NoGreeting,
        ProxyProtocolError,
        ReplyTooLarge,
    )
    from greeter.loadtest import LoadPlan, LoadReport, Threshold, load
    from greeter.server import Server, handler, serve

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
    "NoGreeting",
    "Peer",
    "ProxyProtocolError",
    "Reply",
    "ReplyTooLarge",
    "Server",
    "ServerStats",
    "Threshold",
    "greet",
    "greet_within",
    "handler",
    "load",
    "open_connection",
    "serve",
]


# Where they are. A program loads what it uses, when it first does so.
_HOMES = {
    "greeter.client.oneshot": ("greet", "greet_within"),
    "greeter.core.endpoint": ("Endpoint",),
    "greeter.core.greeting": ("Greeting", "Peer"),
    "greeter.core.admission": ("Limits",),
    "greeter.loadtest": ("LoadPlan", "LoadReport", "Threshold", "load"),
    "greeter.core.replies": ("Reply",),
    "greeter.server": ("Server", "handler", "serve"),
    "greeter.core.stats": ("ServerStats",),
    "greeter.client.streamclient": ("open_connection",),
}


_PUBLIC_MODULES = ("client", "errors", "loadtest", "server")


def __getattr__(name: str) -> object:
    """Import a public name, or a module that has one, when it is first used (PEP 562)."""
    import importlib

    if name in _PUBLIC_MODULES:
        return importlib.import_module(f"greeter.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((home for home, names in _HOMES.items() if name in names), "greeter.errors")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

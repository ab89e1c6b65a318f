"""A TCP greeting server, an async client, a load tester and a conformance suite.

- ``serve`` accepts connections, sends each a greeting and closes it without losing data.
- ``handler`` returns a callback that does the same for your own ``asyncio.start_server``.
- ``greet`` receives a greeting, ``greet_many`` those of many services. ``open_connection`` also returns the
  open connection.
- ``discover`` finds services for datagrams on the local networks.
- ``load`` measures a greeting service.
- ``check`` tells which clients a service loses, and why.

All of them run in the caller's event loop. ``import greeter`` loads the standard library only; each public
name loads its module on first use.

The package consists of rooms. A room imports only from rooms below it in this list::

    cli         parse a command, run it, print, exit
    service     the server process: signals, reload, workers, logging, metrics, systemd
    config      the definition of every option, its sources and validation
    conformance ask a service for one behaviour at a time, report which it lacks
    loadtest    schedule connections, measure them, report
    server      accept connections and handle each from its preamble to the lingering close
    client      connect, receive the greeting, close
    system      listening sockets, event loops, TLS contexts, signals, descriptors
    core        values and rules without I/O
    errors      the exceptions

Beside them, ``testing`` has pytest fixtures for tests of clients. Nothing imports it.
"""

TYPE_CHECKING = False  # type checkers treat it as typing.TYPE_CHECKING, whose import is slow
if TYPE_CHECKING:
    from greeter.client.discovery import DiscoveredService, discover
    from greeter.client.many import greet_many
    from greeter.client.oneshot import greet
    from greeter.client.streamclient import open_connection
    from greeter.conformance import CheckReport, check
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
        UnexpectedGreeting,
    )
    from greeter.loadtest import LoadPlan, LoadReport, Threshold, load
    from greeter.server import Server, handler, serve

__version__ = "0.2.0"

__all__ = [
    "CheckReport",
    "ConfigError",
    "ConnectFailed",
    "DiscoveredService",
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
    "UnexpectedGreeting",
    "check",
    "discover",
    "greet",
    "greet_many",
    "handler",
    "load",
    "open_connection",
    "serve",
]


# The module of each public name, for imports on first use. Names that are not listed are in greeter.errors.
_MODULES = {
    "greeter.client.discovery": ("DiscoveredService", "discover"),
    "greeter.client.many": ("greet_many",),
    "greeter.client.oneshot": ("greet",),
    "greeter.conformance": ("CheckReport", "check"),
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
    """Import a public name or module on first use (PEP 562)."""
    import importlib

    if name in _PUBLIC_MODULES:
        return importlib.import_module(f"greeter.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = next((module for module, names in _MODULES.items() if name in names), "greeter.errors")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

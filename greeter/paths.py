"""Which accept path a server takes.

The law: "auto" takes the first path that can say the greeting, and whoever asks for the instant path where
it cannot be is told why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from greeter.acceptor import Acceptor, can_watch
from greeter.errors import ConfigError
from greeter.instant import Instant, why_not_instant
from greeter.loopserver import LoopServer

if TYPE_CHECKING:
    from greeter.connection import House
    from greeter.greeting import Greeting
    from greeter.listeners import Listener
    from greeter.stream import Stream

Accept = Literal["auto", "stream", "instant"]
Path: TypeAlias = Acceptor | LoopServer


def path_name(
    words: Greeting, accept: Accept, *, proxied: bool, tls: bool, watch: bool = True
) -> Literal["stream", "instant"]:
    """The path that ``accept`` comes to. ``watch``: whether the event loop can watch a socket.

    Raises ConfigError when the instant path is asked for and cannot be, and when the loop cannot do what
    TLS and PROXY headers need.
    """
    before = "a PROXY header" if proxied else "TLS" if tls else None
    if accept != "stream":
        obstacle = why_not_instant(words)
        if before is not None:
            obstacle = f"{before} comes before the greeting"
        elif not watch:
            obstacle = "this event loop cannot watch a socket"
        if obstacle is None:
            return "instant"
        if accept == "instant":
            raise ConfigError(f"cannot accept on the instant path: {obstacle}")
    if before is not None and not watch:
        raise ConfigError(f"{before} needs an event loop that can watch a socket")
    return "stream"


def choose_path(
    house: House, stream: Stream, listeners: list[Listener], accept: Accept, *, backlog: int
) -> Path:
    """The path for the words, the vestibule and the event loop of ``house``. Raises as ``path_name`` does."""
    reception, vestibule = house.reception, house.vestibule
    proxied, tls = vestibule.proxy_from is not None, vestibule.tls is not None
    watch = can_watch(reception.loop)
    name = path_name(reception.words, accept, proxied=proxied, tls=tls, watch=watch)
    if not watch:
        return LoopServer(house, listeners, stream.greet_queue, backlog=backlog)
    take = stream.greet_queue if name == "stream" else Instant(reception, stream).greet_queue
    return Acceptor(reception, listeners, name, take)

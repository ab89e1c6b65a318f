"""Which accept path a server takes.

The law: "auto" takes the first path that can say the greeting, and whoever asks for the instant path where
it cannot be is told why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from greeter.acceptor import Acceptor, can_watch
from greeter.errors import ConfigError
from greeter.instant import Instant, why_not_instant

if TYPE_CHECKING:
    from greeter.connection import House
    from greeter.greeting import Greeting
    from greeter.listeners import Listener
    from greeter.stream import StreamPath

Accept = Literal["auto", "stream", "instant"]
Path: TypeAlias = "StreamPath | Acceptor"


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


def choose_path(house: House, stream: StreamPath, listeners: list[Listener], accept: Accept) -> Path:
    """The path for the words, the vestibule and the event loop of ``house``. Raises as ``path_name`` does."""
    reception, vestibule = house.reception, house.vestibule
    proxied, tls = vestibule.proxy_from is not None, vestibule.tls is not None
    name = path_name(reception.words, accept, proxied=proxied, tls=tls, watch=can_watch(reception.loop))
    if name == "instant":
        return Acceptor(reception, listeners, name, Instant(reception, stream).greet_queue)
    if proxied or tls or any(listener.inherited for listener in listeners):
        # Whoever is not let in must not cost a handshake, so it must not be asyncio that accepts; and
        # asyncio would shorten the listen queue of a socket that others made, and may serve as well.
        return Acceptor(reception, listeners, name, stream.greet_queue)
    return stream

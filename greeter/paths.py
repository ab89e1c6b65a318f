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
    from greeter.listeners import Listener
    from greeter.stream import StreamPath

Accept = Literal["auto", "stream", "instant"]
Path: TypeAlias = "StreamPath | Acceptor"


def choose_path(house: House, stream: StreamPath, listeners: list[Listener], accept: Accept) -> Path:
    """The path for the words, the vestibule and the event loop of ``house``.

    Raises ConfigError when the instant path is asked for and cannot be, and when the loop cannot do what
    TLS and PROXY headers need.
    """
    reception, vestibule = house.reception, house.vestibule
    watch = can_watch(reception.loop)
    before = None
    if vestibule.proxy_from is not None:
        before = "a PROXY header"
    elif vestibule.tls is not None:
        before = "TLS"
    if accept != "stream":
        obstacle = why_not_instant(reception.words)
        if before is not None:
            obstacle = f"{before} comes before the greeting"
        elif not watch:
            obstacle = "this event loop cannot watch a socket"
        if obstacle is None:
            return Acceptor(reception, listeners, "instant", Instant(reception, stream).greet_queue)
        if accept == "instant":
            raise ConfigError(f"cannot accept on the instant path: {obstacle}")
    if before is None:
        return stream
    # Whoever is not let in must not cost a handshake, so asyncio must not be the one that accepts.
    if not watch:
        raise ConfigError(f"{before} needs an event loop that can watch a socket")
    return Acceptor(reception, listeners, "stream", stream.greet_queue)

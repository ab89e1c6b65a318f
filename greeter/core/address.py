"""A client's address: as accept() returns it, and as logs show it.

Invariants:

- The text of an address is one printable line, whatever name the client bound its socket to.
"""

from __future__ import annotations

from typing import Any, TypeAlias

# TCP: (host, port, ...). Unix: the socket's name, usually empty, and bytes if it is abstract. None: the
# client disconnected before getpeername().
Address: TypeAlias = Any


def format_peer(address: Address) -> str:
    """Format ``address`` for a log line, as in ``('127.0.0.1', 3747)``. Control characters are escaped."""
    if isinstance(address, tuple):
        return repr(address[:2])
    return repr("unix:" + unix_name(address)) if address is not None else "a disconnected client"


def endpoint_text(address: Address) -> str | None:
    """Return ``address`` in the notation of endpoints; "" if it is unnamed, None if it is unknown."""
    if isinstance(address, tuple):
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return unix_name(address) if address is not None else None


def unix_name(address: Address) -> str:
    """Return the name of a Unix socket as text; ``@name`` if it is abstract."""
    if isinstance(address, bytes):
        return address.decode(errors="backslashreplace").replace("\0", "@", 1)
    return address or ""

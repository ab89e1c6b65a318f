"""A client's address, as accept() gives it and as people read it.

The law: what is shown of a client is one line, whatever the client called itself.
"""

from __future__ import annotations

from typing import Any, TypeAlias

# (host, port, ...) of a TCP client, the mostly empty name of a Unix one (bytes if it is abstract), and None
# where the client had left before it could be asked.
Address: TypeAlias = Any


def describe(address: Address) -> str:
    """The client as log lines show it: ``('127.0.0.1', 3747)``, and never a raw newline."""
    if isinstance(address, tuple):
        return repr(address[:2])
    return repr("unix:" + text_of(address)) if address is not None else "a client that had left"


def text_of(address: Address) -> str:
    """A Unix socket's name: text, or bytes when it is abstract."""
    if isinstance(address, bytes):
        return address.decode(errors="backslashreplace").replace("\0", "@", 1)
    return address or ""

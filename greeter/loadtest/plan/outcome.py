"""The classes of outcomes: how a connection of a load test ended.

Invariants:

- Every connection that was started ends in exactly one class, so the classes add up to ``attempted``.
- Only an observed greeting counts as a success.
"""

from __future__ import annotations

import errno

GREETED = "greeted"

# The classes of failures, and their meaning as the summary and the page state it.
FAILURE_CLASSES = {
    "connect_refused": "nothing listens there, or a firewall rejects it",
    "connect_timeout": "not connected before the connect timeout: lost packets or a full accept queue",
    "connect_error": "connect failed: unreachable, not permitted, or no such socket",
    "connected_no_greeting": "connected, but received no byte before the timeout",
    "greeting_timeout": "received only part of the greeting before the timeout",
    "reset": "reset by the peer before the end of the greeting",
    "empty": "closed by the peer without sending a byte, or an empty datagram",
    "unexpected_greeting": "a greeting without the expected text or the required end",
    "too_large": "a greeting larger than the maximum",
    "tls_error": "TLS handshake failed, or the TLS session broke",
    "no_reply": "a datagram without a reply before the timeout: one of them was lost, or it was not answered",
    "refused": "a datagram to a port that is unreachable (ICMP)",
    "local_exhausted": "this machine ran out of ports, descriptors or memory",
}

# The server answered: an orderly close, or a complete greeting, expected or not.
ANSWERED = frozenset({GREETED, "empty", "unexpected_greeting"})

# The client is not connected, and another attempt would fail as quickly.
NOT_CONNECTED = frozenset({"connect_refused", "connect_error", "refused", "local_exhausted"})

EXHAUSTED = frozenset(
    {
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.EADDRNOTAVAIL,  # connect(2): all ports of the range are in use for this destination
        errno.EADDRINUSE,  # the same from bind(2) to port 0, without IP_BIND_ADDRESS_NO_PORT
        errno.EAGAIN,  # connect(2) of TCP; for a Unix socket it means a full queue, and is retried
    }
)


def connect_failure(code: int) -> str:
    """Classify a failed connect.

    Args:
        code: the errno of connect(2), or of opening the socket.

    Returns:
        A key of FAILURE_CLASSES.
    """
    if code == errno.ECONNREFUSED:
        return "connect_refused"
    if code == errno.ETIMEDOUT:
        return "connect_timeout"
    return "local_exhausted" if code in EXHAUSTED else "connect_error"

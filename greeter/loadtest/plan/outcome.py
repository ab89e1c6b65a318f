"""What became of a connection, in exactly one word.

The law: every connection that was begun ends in one of these classes, so the classes add up to what was
attempted, and nothing is called a success because nobody looked.
"""

from __future__ import annotations

import errno

GREETED = "greeted"

# What each failure means, in the words of the summary.
FAILURE_CLASSES = {
    "connect_refused": "nothing listens there, or a firewall answers for it",
    "connect_timeout": "no connection by the connect deadline: packets lost, or a full accept queue",
    "connect_error": "no connection: unreachable, not permitted, no such socket",
    "connected_no_greeting": "connected, yet not one byte by the deadline",
    "greeting_timeout": "some bytes, no end of the greeting by the deadline",
    "reset": "reset by the peer before the end of the greeting",
    "empty": "an orderly end without one byte",
    "unexpected_greeting": "a whole greeting, without the expected text",
    "too_large": "more bytes than a greeting may have",
    "tls_error": "no TLS session, or one that broke",
    "local_exhausted": "this machine ran out of ports, descriptors or memory",
}

# An orderly end or a whole greeting, also of one that was not the expected: the server did answer.
ANSWERED = frozenset({GREETED, "empty", "unexpected_greeting"})

EXHAUSTED = frozenset(
    {
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.EADDRNOTAVAIL,  # connect(2): every port of the range is in use for this destination
        errno.EADDRINUSE,  # bind(2) to port 0 of a source address: the same, without IP_BIND_ADDRESS_NO_PORT
        errno.EAGAIN,  # connect(2), but for Unix sockets, where it is a full queue and tried again
    }
)


def connect_failure(code: int) -> str:
    """The class of a connection that ended with errno ``code`` before it was one."""
    if code == errno.ECONNREFUSED:
        return "connect_refused"
    if code == errno.ETIMEDOUT:
        return "connect_timeout"
    return "local_exhausted" if code in EXHAUSTED else "connect_error"

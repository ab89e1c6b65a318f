"""What a server has done, in plain integers: the hot path pays one addition for each.

The law: every accepted connection ends in exactly one of ``greeted``, the classes of ``failed`` and those of
``rejected``, so ``accepted`` is their sum and those that are still being greeted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FAILURES = {
    "greeting_error": "the greeting callable failed",
    "greet_timeout": "the greeting was not taken, or not made, within its deadline",
    "reset": "the client went away before it was greeted",
    "proxy": "a bad or missing PROXY header",
    "tls": "no TLS handshake",
    "aborted": "still being greeted at the drain deadline",
}

REJECTIONS = {
    "denied": "not in the allowed networks, or in a denied one",
    "per_ip": "too many connections from the address",
    "rate": "too many new connections from the address",
    "untrusted": "not one of the proxies whose headers are believed",
}


@dataclass(slots=True)
class ServerStats:
    """Counters of one server, monotonic; ``open`` and ``lingering`` say how many there are now.

    ``accepted``: connections taken from the listen queue. ``greeted``: every byte and the end of stream
    handed to the kernel. ``bytes_sent``: bytes of those greetings. ``failed``: the others, by class.
    ``rejected``: those turned away, by reason. ``linger_timeouts``: greeted clients that never closed and
    were cut off at the linger deadline. ``accept_errors``: times that the system could not accept, for
    want of descriptors or memory.
    """

    accepted: int = 0
    greeted: int = 0
    bytes_sent: int = 0
    linger_timeouts: int = 0
    accept_errors: int = 0
    open: int = 0
    lingering: int = 0
    failed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAILURES, 0))
    rejected: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REJECTIONS, 0))

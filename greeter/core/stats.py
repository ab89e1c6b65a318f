"""What a server has done, in plain integers: the hot path pays one addition for each.

The law: every accepted connection ends in exactly one of ``greeted``, the classes of ``failed`` and those of
``rejected``, so ``accepted`` is their sum and those that are still being greeted.
"""

from __future__ import annotations

from bisect import bisect_left
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


# Seconds. A greeting sent at accept time falls into the first few; the default deadline is the last one.
BOUNDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)


@dataclass(slots=True)
class LatencyHistogram:
    """Times counted by length: each costs a search among sixteen numbers and two additions of integers.

    ``counts`` has one number for each of BOUNDS, of times up to that bound and above the one before it,
    and a last one for longer times. ``micros`` is the sum of all times, in microseconds.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    micros: int = 0

    def add(self, seconds: float, clients: int = 1) -> None:
        """Count ``clients`` that took ``seconds`` each."""
        self.counts[bisect_left(BOUNDS, seconds)] += clients
        self.micros += int(seconds * 1_000_000) * clients

    def __add__(self, other: LatencyHistogram) -> LatencyHistogram:
        counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        return LatencyHistogram(counts, self.micros + other.micros)


@dataclass(slots=True)
class ServerStats:
    """Counters of one server, monotonic; ``open`` and ``lingering`` say how many there are now.

    ``accepted``: connections taken from the listen queue. ``greeted``: every byte and the end of stream
    handed to the kernel. ``bytes_sent``: bytes of those greetings. ``failed``: the others, by class.
    ``rejected``: those turned away, by reason. ``linger_timeouts``: greeted clients that never closed and
    were cut off at the linger deadline. ``accept_errors``: times that the system could not accept, for
    want of descriptors or memory. ``drains``: times that the door was closed and everybody inside was
    waited for. ``greeting_time``: from accept until the kernel had the whole greeting.
    """

    accepted: int = 0
    greeted: int = 0
    bytes_sent: int = 0
    linger_timeouts: int = 0
    accept_errors: int = 0
    drains: int = 0
    open: int = 0
    lingering: int = 0
    failed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAILURES, 0))
    rejected: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REJECTIONS, 0))
    greeting_time: LatencyHistogram = field(default_factory=LatencyHistogram)

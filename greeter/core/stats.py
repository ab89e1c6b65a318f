"""Counters of a server, as plain integers: counting costs the hot path one addition.

Invariants:

- Every accepted connection is counted once more when it ends: in ``greeted``, in one class of ``failed`` or
  in one of ``rejected``. So ``accepted`` is the sum of these and of the connections that are being greeted.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

FAILURES = {
    "greeting_error": "the greeting callable failed",
    "greet_timeout": "the greeting was not made or not sent within its deadline",
    "reset": "the client disconnected before it was greeted",
    "proxy": "invalid or missing PROXY header",
    "tls": "the TLS handshake failed",
    "aborted": "still being greeted at the drain deadline",
}

REJECTIONS = {
    "denied": "the address is in a denied network, or in no allowed one",
    "per_ip": "too many open connections from the address",
    "rate": "too many new connections per second from the address",
    "untrusted": "the address is not that of a trusted proxy",
}


# Upper bounds of the buckets in seconds. A greeting that is sent at accept falls into one of the first few.
# The last bound is the default deadline.
BOUNDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)


@dataclass(slots=True)
class LatencyHistogram:
    """A histogram of latencies with fixed buckets. Counting one costs a bisection and two additions.

    Attributes:
        counts: One count for each of BOUNDS, of latencies up to and including that bound and above the bound
            before it, and a last one for longer latencies.
        micros: The sum of all latencies, in microseconds.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    micros: int = 0

    def add(self, seconds: float, clients: int = 1) -> None:
        """Count ``clients`` latencies of ``seconds`` each."""
        self.counts[bisect_left(BOUNDS, seconds)] += clients
        self.micros += int(seconds * 1_000_000) * clients

    def __add__(self, other: LatencyHistogram) -> LatencyHistogram:
        counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        return LatencyHistogram(counts, self.micros + other.micros)


@dataclass(slots=True)
class ServerStats:
    """The counters of one server. All are monotonic, except ``open`` and ``lingering``, which are gauges.

    - ``accepted``: connections taken from the accept queue.
    - ``greeted``: connections whose greeting and end of stream were handed to the kernel.
    - ``bytes_sent``: bytes of those greetings.
    - ``linger_timeouts``: greeted connections aborted at the linger deadline, as the client had not closed.
    - ``accept_errors``: calls of accept() that failed for lack of descriptors or memory.
    - ``drains``: completed drains.
    - ``open``: connections that are open now.
    - ``lingering``: greeted connections that wait for the client to close now.
    - ``failed``: connections that were not greeted, by class.
    - ``rejected``: connections that were not admitted, by reason.
    - ``greeting_time``: latencies from accept until the kernel had the whole greeting.
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

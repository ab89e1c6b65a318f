"""Counters of a server: 64-bit integers in one block, so that another process can read them.

The block is a list, or memory that is shared with another process. Counting costs the hot path the same in
both: an item of a ``memoryview`` is incremented as fast as an attribute.

Invariants:

- Every accepted connection is counted once more when it ends: in ``greeted``, in one class of ``failed`` or
  in one of ``rejected``. So ``accepted`` is the sum of these and of the connections that are being greeted.
- A counter is in the block as soon as it is counted: the death of the process loses none. Each is an aligned
  word, which is stored as a whole.
"""

from __future__ import annotations

from binascii import crc32
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    Block: TypeAlias = list[int] | memoryview[int]

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

# Why datagrams are not answered: on purpose, and otherwise.
DATAGRAM_REJECTIONS = {
    "denied": "the address is in a denied network, or in no allowed one",
    "per_ip": "too many datagrams from the address wait for their greeting",
    "rate": "too many datagrams per second from the address",
    "amplification": "a public address, and less than a third of the greeting's size",
    "loop": "the source cannot be that of a client, or the datagram is the greeting itself",
}

DATAGRAM_FAILURES = {
    "greeting_error": "the greeting callable failed",
    "greet_timeout": "the greeting was not made or not sent within its deadline",
    "unsent": "the system could not send the greeting",
    "aborted": "still waiting for its greeting at the drain deadline",
}

# What a datagram is counted as when it is done with.
_DATAGRAM_ENDS = (
    "greeted",
    *("failed_" + name for name in DATAGRAM_FAILURES),
    *("rejected_" + name for name in DATAGRAM_REJECTIONS),
)
DATAGRAM_COUNTERS = ("received", *_DATAGRAM_ENDS, "sent_bytes", "receive_errors")

# Upper bounds of the buckets in seconds. A greeting that is sent at accept falls into one of the first few.
# The last bound is the default deadline.
BOUNDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)


# The attributes of ServerStats that are no counters.
GAUGES = ("open", "lingering", "max_connections", "accepting")

# Where each counter is in a block. The first word identifies the layout: processes of two versions of the
# package can share a block.
_LAYOUT, ACCEPTED, GREETED, BYTES_SENT, LINGER_TIMEOUTS, ACCEPT_ERRORS, PAUSED_MICROS, DRAINS, _MICROS = (
    range(9)
)
FAILED = {name: index for index, name in enumerate(FAILURES, 9)}
REJECTED = {name: index for index, name in enumerate(REJECTIONS, 9 + len(FAILED))}
_BUCKETS = 9 + len(FAILED) + len(REJECTED)
DATAGRAMS = {name: index for index, name in enumerate(DATAGRAM_COUNTERS, _BUCKETS + len(BOUNDS) + 1)}
BLOCK_LENGTH = _BUCKETS + len(BOUNDS) + 1 + len(DATAGRAMS)
_LAYOUT_ID = crc32(repr((3, *FAILED, *REJECTED, *BOUNDS, *DATAGRAMS)).encode())


@dataclass(slots=True)
class LatencyHistogram:
    """A histogram of latencies with fixed buckets.

    Attributes:
        counts: One count for each of BOUNDS, of latencies up to and including that bound and above the bound
            before it, and a last one for longer latencies.
        micros: The sum of all latencies, in microseconds.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    micros: int = 0

    def __add__(self, other: LatencyHistogram) -> LatencyHistogram:
        counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        return LatencyHistogram(counts, self.micros + other.micros)


class _Counter:
    """An attribute of ServerStats that is a word of its block."""

    def __init__(self, index: int) -> None:
        self._index = index

    def __get__(self, stats: ServerStats, owner: object = None) -> int:
        return stats.block[self._index]


class ServerStats:
    """The counters of one server. All are monotonic, except the GAUGES.

    - ``accepted``: connections taken from the accept queue.
    - ``greeted``: connections whose greeting and end of stream were handed to the kernel.
    - ``bytes_sent``: bytes of those greetings.
    - ``linger_timeouts``: greeted connections aborted at the linger deadline, as the client had not closed.
    - ``accept_errors``: calls of accept() that failed for lack of descriptors or memory.
    - ``drains``: completed drains.
    - ``paused_micros``: how long accepting was paused, at capacity or for lack of descriptors or memory, in
      microseconds.
    - ``open``: connections that are open now.
    - ``lingering``: greeted connections that wait for the client to close now.
    - ``max_connections``: open connections at which accepting is paused.
    - ``accepting``: 1 while connections are accepted, 0 while accepting is paused or has ended.
    - ``failed``: connections that were not greeted, by class.
    - ``rejected``: connections that were not admitted, by reason.
    - ``greeting_time``: latencies from accept until the kernel had the whole greeting.
    - ``datagrams_dropped``: datagrams that the kernel dropped before they could be received.
    - ``datagrams``: by the names in DATAGRAM_COUNTERS: datagrams that were received, greeted, that failed by
      class and were rejected by reason; the bytes of those greetings; and errors of receiving.

    ``block`` holds the counters, but not the gauges and ``datagrams_dropped``, which belongs to sockets that
    processes may share. The server counts in it by index.
    """

    __slots__ = ("block", "datagrams_dropped", *GAUGES)

    def __init__(self) -> None:
        self.block: Block = [0] * BLOCK_LENGTH
        self.open = 0
        self.lingering = 0
        self.max_connections = 0
        self.accepting = 0
        self.datagrams_dropped = 0

    accepted = _Counter(ACCEPTED)
    greeted = _Counter(GREETED)
    bytes_sent = _Counter(BYTES_SENT)
    linger_timeouts = _Counter(LINGER_TIMEOUTS)
    accept_errors = _Counter(ACCEPT_ERRORS)
    paused_micros = _Counter(PAUSED_MICROS)
    drains = _Counter(DRAINS)

    @property
    def failed(self) -> Mapping[str, int]:
        return {name: self.block[index] for name, index in FAILED.items()}

    @property
    def rejected(self) -> Mapping[str, int]:
        return {name: self.block[index] for name, index in REJECTED.items()}

    @property
    def greeting_time(self) -> LatencyHistogram:
        return LatencyHistogram(list(self.block[_BUCKETS : _BUCKETS + len(BOUNDS) + 1]), self.block[_MICROS])

    @property
    def datagrams(self) -> Mapping[str, int]:
        return {name: self.block[index] for name, index in DATAGRAMS.items()}

    @property
    def datagram_rejections(self) -> Mapping[str, int]:
        """Datagrams that were rejected, by reason."""
        return {name: self.block[DATAGRAMS[f"rejected_{name}"]] for name in DATAGRAM_REJECTIONS}

    @property
    def unfinished(self) -> int:
        """Accepted connections that are in no class yet."""
        ended = self.greeted + sum(self.failed.values()) + sum(self.rejected.values())
        return max(0, self.accepted - ended)

    def count_greeted(self, sent: int, seconds: float, clients: int = 1) -> None:
        """Count greeted connections. It costs a bisection and four additions.

        Args:
            sent: The bytes of all their greetings.
            seconds: The latency of each.
            clients: How many they are.
        """
        block = self.block
        block[_BUCKETS + bisect_left(BOUNDS, seconds)] += clients
        block[_MICROS] += int(seconds * 1_000_000) * clients
        block[BYTES_SENT] += sent
        block[GREETED] += clients

    def count_failed(self, why: str) -> None:
        """Count a connection that was not greeted, for one of the FAILURES."""
        self.block[FAILED[why]] += 1

    def count_rejected(self, why: str) -> None:
        """Count a connection that was rejected, for one of the REJECTIONS."""
        self.block[REJECTED[why]] += 1

    def count_datagrams(self, name: str, count: int = 1) -> None:
        """Add ``count`` to one of the DATAGRAM_COUNTERS."""
        self.block[DATAGRAMS[name]] += count

    def move_to(self, block: memoryview[int]) -> None:
        """Count in ``block`` from now on, which has BLOCK_LENGTH words and starts with the counts so far."""
        for index, count in enumerate(self.block):
            block[index] = count
        block[_LAYOUT] = _LAYOUT_ID
        self.block = block

    @classmethod
    def read_from(cls, block: memoryview[int]) -> ServerStats | None:
        """Return the counters that another process keeps in ``block``.

        Args:
            block: What that process has given to ``move_to``, or is still to give.

        Returns:
            The counters, which change as the process counts. None if it has not called ``move_to`` yet, or
            runs a version of this module with other counters.
        """
        if block[_LAYOUT] != _LAYOUT_ID:
            return None
        stats = cls()
        stats.block = block
        return stats

    def abort_unfinished(self) -> int:
        """Count as aborted what the process had not finished when it died.

        Returns:
            How many connections they were.
        """
        datagrams = self.datagrams
        ended = sum(datagrams[name] for name in _DATAGRAM_ENDS)
        self.count_datagrams("failed_aborted", max(0, datagrams["received"] - ended))
        unfinished = self.unfinished
        self.block[FAILED["aborted"]] += unfinished
        return unfinished

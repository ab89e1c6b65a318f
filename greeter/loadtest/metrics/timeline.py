"""The run as a series in time, in constant memory.

The law: there are never more than 600 buckets. They are a second wide until they are full; then each two
become one, twice as wide, and so on, so that an hour of load takes the room of ten minutes and nothing is
dropped. The engine counts into an Interval, a quarter of a second; intervals add up to buckets, buckets
of several workers add up too.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

from greeter.loadtest.metrics.histogram import (
    HIGHEST_US,
    Histogram,
    decode,
    encode,
    index_of,
    keys_at,
    lowest,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

INTERVAL = 0.25
INITIAL_WIDTH = 1.0
MAX_BUCKETS = 600

# A bucket keeps the leading 8 bits of each latency, which is HdrHistogram's two digits.
BITS, _DIGITS = 8, 2


def _sparse() -> Histogram:
    return Histogram(sparse=True)


@dataclass(slots=True)
class Interval:
    """What happened in a quarter of a second that began ``begin`` seconds into the run.

    ``attempted`` by when they were begun, ``greeted`` and ``failed`` by when they ended; ``open`` is the
    most that were open at once.
    """

    begin: float = 0.0
    attempted: int = 0
    greeted: int = 0
    failed: int = 0
    open: int = 0
    response: Histogram = field(default_factory=_sparse)

    def to_json(self) -> list[Any]:
        return [
            self.begin,
            self.attempted,
            self.greeted,
            self.failed,
            self.open,
            *self.response.counts.items(),
        ]

    @classmethod
    def from_json(cls, values: list[Any]) -> Interval:
        begin, attempted, greeted, failed, most, *pairs = values
        return cls(begin, attempted, greeted, failed, most, Histogram(dict(pairs), sparse=True))


# Who wants to know of each interval as it ends, with the number of the worker.
OnInterval: TypeAlias = Callable[[Interval, int], None]


@dataclass(slots=True)
class Bucket:
    """As an Interval. Its latencies are packed, the least µs of a class and a count in turns."""

    attempted: int = 0
    greeted: int = 0
    failed: int = 0
    open: int = 0
    packed: array[int] = field(default_factory=lambda: array("Q"))

    @property
    def latencies(self) -> dict[int, int]:
        """``{least µs of a class of latencies: how many}``, in ascending order."""
        return dict(zip(self.packed[::2], self.packed[1::2], strict=True))

    def count(self, latencies: Iterable[tuple[int, int]]) -> None:
        """Count latencies in µs, each so many times."""
        self.count_classes((us >> shift(us) << shift(us), count) for us, count in latencies)

    def count_classes(self, latencies: Iterable[tuple[int, int]]) -> None:
        """Count latencies that are given as the least µs of their classes."""
        counts = self.latencies
        for us, count in latencies:
            counts[us] = counts.get(us, 0) + count
        self.packed = array("Q", chain.from_iterable(sorted(counts.items())))

    def add(self, other: Bucket, *, alongside: bool) -> None:
        """Take in another bucket: of the same time (another worker's) or of the time that follows."""
        self.attempted += other.attempted
        self.greeted += other.greeted
        self.failed += other.failed
        self.open = self.open + other.open if alongside else max(self.open, other.open)
        self.count_classes(other.latencies.items())


class Timeline:
    """Buckets from the beginning of the run; ``width`` seconds each."""

    def __init__(self) -> None:
        self.width = INITIAL_WIDTH
        self.buckets: list[Bucket] = []
        self._coarse = _coarse()  # made now, and not in the middle of a run

    def add(self, interval: Interval) -> None:
        """Count what happened in ``interval``."""
        bucket = self._bucket(interval.begin)
        bucket.attempted += interval.attempted
        bucket.greeted += interval.greeted
        bucket.failed += interval.failed
        bucket.open = max(bucket.open, interval.open)
        coarse = self._coarse
        bucket.count_classes((coarse[index], count) for index, count in interval.response.unordered().items())

    def retract(self, begin: float) -> None:
        """Take back one connection that was begun at ``begin`` and cut off by the end of the run."""
        self._bucket(begin).attempted -= 1

    def merge(self, other: Timeline) -> None:
        """Add another worker's timeline of the same run."""
        while self.width < other.width:
            self._double()
        while other.width < self.width:
            other._double()
        while len(self.buckets) < len(other.buckets):
            self.buckets.append(Bucket())
        for mine, theirs in zip(self.buckets, other.buckets, strict=False):
            mine.add(theirs, alongside=True)

    def _bucket(self, t: float) -> Bucket:
        while t >= self.width * MAX_BUCKETS:
            self._double()
        index = int(t / self.width)
        while len(self.buckets) <= index:
            self.buckets.append(Bucket())
        return self.buckets[index]

    def _double(self) -> None:
        self.width *= 2
        for early, late in zip(self.buckets[::2], self.buckets[1::2], strict=False):
            early.add(late, alongside=False)
        del self.buckets[1::2]

    def rows(self) -> list[dict[str, Any]]:
        """One row of figures for each bucket, as the report has them; the histogram has two digits."""
        return [
            {
                "t": index * self.width,
                "attempted": bucket.attempted,
                "greeted": bucket.greeted,
                "failed": bucket.failed,
                "open": bucket.open,
                **_percentiles(bucket.latencies),
                "histogram": encode(bucket.latencies, _DIGITS),
            }
            for index, bucket in enumerate(self.buckets)
        ]

    @classmethod
    def from_rows(cls, width: float, rows: list[dict[str, Any]]) -> Timeline:
        """The timeline whose ``rows`` these are."""
        timeline = cls()
        timeline.width = width
        for row in rows:
            bucket = Bucket(row["attempted"], row["greeted"], row["failed"], row["open"])
            bucket.count(decode(row["histogram"]).items())
            timeline.buckets.append(bucket)
        return timeline


def _percentiles(latencies: dict[int, int]) -> dict[str, float | None]:
    """The median and the 99th percentile in µs: the upper ends of their classes."""
    found = [us + (1 << shift(us)) - 1 for us in keys_at(latencies, 50, 99)]
    return dict(zip(("p50_us", "p99_us"), found or (None, None), strict=True))


@cache
def _coarse() -> array[int]:
    """The least µs of the class of every bucket of a Histogram; a table, because each interval needs it."""
    values = map(lowest, range(index_of(HIGHEST_US) + 1))
    return array("L", [us >> shift(us) << shift(us) for us in values])


def shift(us: int, bits: int = BITS) -> int:
    """By how many bits a latency is longer than its leading ``bits``."""
    return max(0, us.bit_length() - bits)

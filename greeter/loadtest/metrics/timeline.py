"""The figures of a run over time, in constant memory.

The engine counts in an Interval of a quarter of a second or less. Intervals are added to buckets, and the
buckets of several workers can be added.

Invariants:

- A bucket is as wide as the plan says: a 60th of the run, and 50 ms at least. There are at most 600 buckets.
  When all are in use, each two become one of twice the width, so the memory does not grow with the run.
- An interval belongs to one bucket, because the width of a bucket is a multiple of that of an interval.
- No connection is dropped from the timeline.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from math import ceil, inf
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
from greeter.loadtest.plan.plan import MIN_BUCKET

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_SPAN = 0.25  # seconds; the longest interval
MAX_BUCKETS = 600
# A report has at most this many buckets, so that a run of unknown length has about a 60th of it in each.
_MAX_ROWS = 120

# A bucket keeps the leading 8 bits of each latency, like an HdrHistogram of two digits.
BITS, _DIGITS = 8, 2

# The response times of a row.
ROW_PERCENTILES = {"p50_us": 50.0, "p95_us": 95.0, "p99_us": 99.0, "max_us": 100.0}
# A bucket of which less than this share lies within the run is partial.
_NEARLY = 0.99


def _sparse() -> Histogram:
    return Histogram(sparse=True)


@dataclass(slots=True)
class Interval:
    """The figures of ``span`` seconds.

    - ``begin``: its beginning, in seconds since that of the run.
    - ``attempted``: connections started in it.
    - ``greeted``, ``failed``: connections that ended in it; ``errors``: the failed ones by class.
    - ``open``: the maximum of open connections.
    - ``response``: the response times of the connections that ended in it.
    """

    begin: float = 0.0
    attempted: int = 0
    greeted: int = 0
    failed: int = 0
    open: int = 0
    response: Histogram = field(default_factory=_sparse)
    errors: dict[str, int] = field(default_factory=dict)
    span: float = MAX_SPAN

    def to_json(self) -> list[Any]:
        """Return the interval as JSON."""
        return [
            self.begin,
            self.attempted,
            self.greeted,
            self.failed,
            self.open,
            self.errors,
            self.span,
            *self.response.counts.items(),
        ]

    @classmethod
    def from_json(cls, values: list[Any]) -> Interval:
        """Return the interval that ``to_json`` made ``values`` from."""
        begin, attempted, greeted, failed, most, errors, span, *pairs = values
        response = Histogram(dict(pairs), sparse=True)
        return cls(begin, attempted, greeted, failed, most, response, errors, span)


def interval_span(width: float) -> float:
    """Return the length of an interval for buckets of ``width`` seconds."""
    return width / ceil(width / MAX_SPAN)


# Called with each interval as it ends, and the number of its worker.
OnInterval: TypeAlias = Callable[[Interval, int], None]


@dataclass(slots=True)
class Bucket:
    """The figures of a part of the timeline, like those of an Interval.

    ``packed`` has the response times: the lowest value of a class in µs and its count, alternating.
    """

    attempted: int = 0
    greeted: int = 0
    failed: int = 0
    open: int = 0
    packed: array[int] = field(default_factory=lambda: array("Q"))
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def latencies(self) -> dict[int, int]:
        """The counts by the lowest value in µs of their class, in ascending order."""
        return dict(zip(self.packed[::2], self.packed[1::2], strict=True))

    def count(self, latencies: Iterable[tuple[int, int]]) -> None:
        """Count latencies, given as pairs of a value in µs and a count."""
        self.count_classes((us >> shift(us) << shift(us), count) for us, count in latencies)

    def count_classes(self, latencies: Iterable[tuple[int, int]]) -> None:
        """Count latencies, given as pairs of the lowest value in µs of a class and a count."""
        counts = self.latencies
        for us, count in latencies:
            counts[us] = counts.get(us, 0) + count
        self.packed = array("Q", chain.from_iterable(sorted(counts.items())))

    def add(self, other: Bucket, *, alongside: bool) -> None:
        """Add another bucket.

        Args:
            other: the bucket to add.
            alongside: True if it has the same time (of another worker), False if it follows this one.
        """
        self.attempted += other.attempted
        self.greeted += other.greeted
        self.failed += other.failed
        add_counts(self.errors, other.errors)
        self.open = self.open + other.open if alongside else max(self.open, other.open)
        self.count_classes(other.latencies.items())


class Timeline:
    """The buckets of a run, from its beginning; each is ``width`` seconds wide."""

    def __init__(self, width: float = MIN_BUCKET) -> None:
        self.width = width
        self.buckets: list[Bucket] = []
        self._coarse = _coarse()  # computed now, not during the run

    def add(self, interval: Interval) -> None:
        """Add an interval."""
        bucket = self._bucket(interval.begin)
        bucket.attempted += interval.attempted
        bucket.greeted += interval.greeted
        bucket.failed += interval.failed
        add_counts(bucket.errors, interval.errors)
        bucket.open = max(bucket.open, interval.open)
        coarse = self._coarse
        bucket.count_classes((coarse[index], count) for index, count in interval.response.unordered().items())

    def retract(self, begin: float) -> None:
        """Remove one connection that was cut off by the end of the run.

        Args:
            begin: its start, in seconds since the beginning of the run.
        """
        self._bucket(begin).attempted -= 1

    def merge(self, other: Timeline) -> None:
        """Add the timeline of another worker of the same run.

        If the widths differ by another factor than a power of two, a bucket of ``other`` is added where it
        begins.
        """
        if not self.buckets:
            self.width = other.width
        while self.width < other.width:
            self._double()
        aligned = Timeline(self.width)
        for index, bucket in enumerate(other.buckets):
            aligned._bucket(index * other.width).add(bucket, alongside=False)
        while len(self.buckets) < len(aligned.buckets):
            self.buckets.append(Bucket())
        for mine, theirs in zip(self.buckets, aligned.buckets, strict=False):
            mine.add(theirs, alongside=True)

    def coarsen(self) -> None:
        """Double the width until a report has few enough rows."""
        while len(self.buckets) > _MAX_ROWS:
            self._double()

    def _bucket(self, t: float) -> Bucket:
        while t >= self.width * MAX_BUCKETS:
            self._double()
        index = int(t / self.width + 1e-6)  # the beginning of an interval may be rounded down
        while len(self.buckets) <= index:
            self.buckets.append(Bucket())
        return self.buckets[index]

    def _double(self) -> None:
        self.width *= 2
        for early, late in zip(self.buckets[::2], self.buckets[1::2], strict=False):
            early.add(late, alongside=False)
        del self.buckets[1::2]

    def rows(self, duration: float = inf) -> list[dict[str, Any]]:
        """Return a row for each bucket, as reports have them. Their histograms have two digits.

        Args:
            duration: the length of the run in seconds. A bucket that it ends in is marked as partial.
        """
        return [
            {
                "t": round(index * self.width, 6),
                "partial": duration < (index + _NEARLY) * self.width,
                "attempted": bucket.attempted,
                "greeted": bucket.greeted,
                "failed": bucket.failed,
                "errors": bucket.errors,
                "open": bucket.open,
                **_percentiles(bucket.latencies),
                "histogram": encode(bucket.latencies, _DIGITS),
            }
            for index, bucket in enumerate(self.buckets)
        ]

    @classmethod
    def from_rows(cls, width: float, rows: list[dict[str, Any]]) -> Timeline:
        """Return the timeline that ``rows`` was made from.

        Args:
            width: of each bucket, in seconds.
            rows: the rows of a report.

        Raises:
            ValueError: a histogram is not an HdrHistogram encoding.
        """
        timeline = cls(width)
        for row in rows:
            bucket = Bucket(row["attempted"], row["greeted"], row["failed"], row["open"])
            bucket.errors = dict(row.get("errors", {}))  # greeter 0.1 had none
            bucket.count(decode(row["histogram"]).items())
            timeline.buckets.append(bucket)
        return timeline


def _percentiles(latencies: dict[int, int]) -> dict[str, float | None]:
    """Return percentiles and the maximum in µs, as the highest values of their classes."""
    found = keys_at(latencies, *ROW_PERCENTILES.values())
    if not found:
        return dict.fromkeys(ROW_PERCENTILES)
    return {name: us + (1 << shift(us)) - 1 for name, us in zip(ROW_PERCENTILES, found, strict=True)}


def add_counts(mine: dict[str, int], theirs: dict[str, int]) -> None:
    """Add the counts of ``theirs`` to ``mine``."""
    for name, count in theirs.items():
        mine[name] = mine.get(name, 0) + count


@cache
def _coarse() -> array[int]:
    """Return a table: the lowest value in µs of the class of each bucket of a Histogram."""
    values = map(lowest, range(index_of(HIGHEST_US) + 1))
    return array("L", [us >> shift(us) << shift(us) for us in values])


def shift(us: int, bits: int = BITS) -> int:
    """Return by how many bits a latency in µs is longer than its leading ``bits``."""
    return max(0, us.bit_length() - bits)

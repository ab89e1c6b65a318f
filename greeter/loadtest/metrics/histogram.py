"""Latencies counted as HdrHistogram counts them: 1 µs to 60 s, three significant digits.

The law: what is recorded here is what the ``hdrhistogram`` package would have recorded, bucket for
bucket. It is kept in a plain list, because that takes a fraction of the time of the package's
``record_value`` and has one size for ever. The package does the encoding, so that every tool that knows
HdrHistogram reads the result.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, cast

from greeter.errors import MissingExtra

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LOWEST_US, HIGHEST_US, DIGITS = 1, 60_000_000, 3
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "p99.99": 99.99}

# Three digits take 2,048 buckets one apart; from there on each doubling has 1,024, twice as far apart as
# in the one before: HdrHistogram's sub_bucket_half_count. An index is made of the doubling and the place.
_BITS = 11
_HALF = 1 << (_BITS - 1)


def index_of(us: int) -> int:
    """The bucket of ``us`` microseconds."""
    shift = us.bit_length() - _BITS
    return us if shift <= 0 else shift * _HALF + (us >> shift)


def lowest(index: int) -> int:
    """The smallest value in µs of the bucket at ``index``."""
    shift = max(0, index // _HALF - 1)
    return (index - shift * _HALF) << shift


def highest(index: int) -> int:
    """The largest value in µs of the bucket at ``index``."""
    return lowest(index + 1) - 1


_LAST = index_of(HIGHEST_US)
_MAX_COUNT = 2**40
_ZEROS = [0] * (_LAST + 1)


class Histogram:
    """Counts of latencies. ``record(seconds)`` takes one in.

    It begins with ``counts``, ``{index of a bucket: count}``. A ``sparse`` one takes room only for the
    buckets that are in use: for a moment, and not for a run.
    """

    __slots__ = ("_counts", "_over", "_recorded", "record")

    def __init__(
        self, counts: Mapping[int, int] | None = None, over: int = 0, *, sparse: bool = False
    ) -> None:
        self._counts: list[int] | defaultdict[int, int] = defaultdict(int) if sparse else _ZEROS[:]
        self._over = over
        self._recorded: list[float] = []
        # To record is to note: between two system calls, that is a tenth of what it takes to count.
        self.record: Callable[[float], None] = self._recorded.append
        self._add(counts or {})

    def count(self) -> None:
        """Count what was recorded since the last time. Whoever records calls this now and then."""
        counts = self._counts
        for seconds in self._recorded:
            us = int(seconds * 1e6 + 0.5)
            if us < 2048:  # index_of, written out
                counts[us or LOWEST_US] += 1
            elif us <= HIGHEST_US:
                shift = us.bit_length() - 11
                counts[(shift << 10) + (us >> shift)] += 1
            else:
                counts[_LAST] += 1
                self._over += 1
        self._recorded.clear()

    def add(self, other: Histogram) -> None:
        """Count everything that ``other`` counted."""
        self._add(other.unordered())
        self._over += other.over

    def _add(self, counts: Mapping[int, int]) -> None:
        mine = self._counts
        for index, count in counts.items():
            mine[index] += count

    @property
    def counts(self) -> dict[int, int]:
        """``{index: count}`` of the buckets in use, in ascending order."""
        return dict(sorted(self.unordered().items()))

    def unordered(self) -> Mapping[int, int]:
        """The same in any order, and for less; it is not to be kept."""
        self.count()
        if isinstance(self._counts, defaultdict):
            return self._counts
        return {index: count for index, count in enumerate(self._counts) if count}

    @property
    def over(self) -> int:
        """How many latencies were over 60 s; they are counted as 60 s."""
        self.count()
        return self._over

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def percentiles(self, *percents: float) -> list[float | None]:
        """The values in µs that so many percent of the latencies do not exceed, in ascending order."""
        return [highest(index) for index in keys_at(self.counts, *percents)] or [None] * len(percents)

    def summary(self) -> dict[str, float | None]:
        """Count, min, mean, percentiles and max in µs, as the report has them."""
        counts = self.counts
        total = sum(counts.values())
        if not total:
            return {"count": 0, **dict.fromkeys(("min", "mean", *PERCENTILES, "max"))}
        weighed = sum(count * _middle(index) for index, count in counts.items())
        found = map(highest, keys_at(counts, *PERCENTILES.values()))
        return {
            "count": total,
            "min": lowest(min(counts)),
            "mean": round(weighed / total, 3),
            **dict(zip(PERCENTILES, found, strict=True)),
            "max": highest(max(counts)),
        }

    def between(self, begin: float, end: float) -> int:
        """How many latencies were from ``begin`` to ``end`` seconds, to the width of a bucket."""
        return sum(n for index, n in self.counts.items() if begin * 1e6 <= highest(index) < end * 1e6)

    def encode(self) -> str:
        """HdrHistogram's V2 encoding, compressed, in base64."""
        return encode({lowest(index): count for index, count in self.counts.items()}, DIGITS)

    @classmethod
    def decode(cls, text: str) -> Histogram:
        """The histogram that ``encode`` wrote, or another program. Raises ValueError for what is none."""
        histogram = cls()
        for us, count in decode(text).items():
            histogram._counts[index_of(us)] += count  # by value: it may be of another shape
        return histogram


def keys_at(counts: Mapping[int, int], *percents: float) -> list[int]:
    """The keys at or below which so many percent of ``counts`` lie, for ascending ``percents``.

    The rank is rounded as HdrHistogram rounds it. Of nothing there are no percentiles.
    """
    total = sum(counts.values())
    if not total:
        return []
    ranks = [max(1, int(percent * total / 100 + 0.5)) for percent in percents]
    found: list[int] = []
    seen = 0
    for key in sorted(counts):
        seen += counts[key]
        while len(found) < len(ranks) and seen >= ranks[len(found)]:
            found.append(key)
    return found


def encode(counts: Mapping[int, int], digits: int) -> str:
    """``{value in µs: count}`` in HdrHistogram's V2 encoding, to so many digits.

    Raises MissingExtra without the package.
    """
    hdr = import_hdrh().HdrHistogram(LOWEST_US, HIGHEST_US, digits)
    for us, count in counts.items():
        hdr.record_value(us, count)
    return cast("bytes", hdr.encode()).decode("ascii")


def decode(text: str) -> dict[int, int]:
    """``{least value in µs of a bucket: count}`` of an encoding of any shape.

    What is beyond our range is put at its end. Raises ValueError for what is no encoding, or of more than
    there can have been.
    """
    histogram = import_hdrh().HdrHistogram
    try:
        hdr = histogram.decode(text)
    except Exception as error:  # the package lets through what base64, zlib and ctypes raise
        raise ValueError(f"no HdrHistogram encoding: {text[:40]!r}") from error
    counts: defaultdict[int, int] = defaultdict(int)
    for index in range(hdr.counts_len):
        if count := hdr.get_count_at_index(index):
            if count > _MAX_COUNT:  # or the sum of several would not fit where they are added up
                raise ValueError(f"a count of {count:,} in an HdrHistogram encoding")
            counts[min(max(hdr.get_value_from_index(index), LOWEST_US), HIGHEST_US)] += count
    return dict(counts)


def import_hdrh() -> Any:
    """The module ``hdrh.histogram``, imported when it is needed. Raises MissingExtra without it."""
    try:
        from hdrh import histogram  # type: ignore[import-untyped]  # the package has no types
    except ImportError:
        raise MissingExtra("greeter load", "load") from None
    return histogram


def _middle(index: int) -> float:
    low = lowest(index)
    return low + ((lowest(index + 1) - low) >> 1)

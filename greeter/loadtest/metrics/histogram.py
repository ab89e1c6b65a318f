"""Latency histograms with the buckets of HdrHistogram: 1 µs to 60 s, three significant digits.

Invariants:

- The counts equal those of the ``hdrhistogram`` package, bucket for bucket.
- The memory of a histogram is constant. Its counts are in a list, because counting there takes a fraction
  of the time of the package's ``record_value``.
- The package encodes and decodes, so every tool for HdrHistogram can read the result.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, cast

from greeter.errors import MissingExtra
from greeter.loadtest.plan.units import LONGEST_US

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LOWEST_US, HIGHEST_US, DIGITS = 1, LONGEST_US, 3
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p99.9": 99.9, "p99.99": 99.99}

# Three digits need 2,048 buckets of 1 µs. Above, each doubling of the value has 1,024 buckets (HdrHistogram's
# sub_bucket_half_count), twice as wide as those below. An index combines the doubling and the place in it.
_BITS = 11
_HALF = 1 << (_BITS - 1)


def index_of(us: int) -> int:
    """Return the index of the bucket of ``us`` microseconds."""
    shift = us.bit_length() - _BITS
    return us if shift <= 0 else shift * _HALF + (us >> shift)


def lowest(index: int) -> int:
    """Return the smallest value in µs of the bucket at ``index``."""
    shift = max(0, index // _HALF - 1)
    return (index - shift * _HALF) << shift


def highest(index: int) -> int:
    """Return the largest value in µs of the bucket at ``index``."""
    return lowest(index + 1) - 1


_LAST = index_of(HIGHEST_US)
_MAX_COUNT = 2**40
_ZEROS = [0] * (_LAST + 1)


class Histogram:
    """Counts of latencies. ``record(seconds)`` adds one.

    Args:
        counts: the counts to begin with, by the index of their bucket.
        over: how many of them were over 60 s.
        sparse: store only the buckets in use. This suits short intervals, not whole runs.
    """

    __slots__ = ("_counts", "_over", "_recorded", "record")

    def __init__(
        self, counts: Mapping[int, int] | None = None, over: int = 0, *, sparse: bool = False
    ) -> None:
        self._counts: list[int] | defaultdict[int, int] = defaultdict(int) if sparse else _ZEROS[:]
        self._over = over
        self._recorded: list[float] = []
        # record only appends: a tenth of the time of counting, which ``count`` does later, in a batch.
        self.record: Callable[[float], None] = self._recorded.append
        self._add(counts or {})

    def count(self) -> None:
        """Count what was recorded since the last call. Must be called regularly, to free the records."""
        counts = self._counts
        for seconds in self._recorded:
            us = int(seconds * 1e6 + 0.5)
            if us < 2048:  # index_of, inlined
                counts[us or LOWEST_US] += 1
            elif us <= HIGHEST_US:
                shift = us.bit_length() - 11
                counts[(shift << 10) + (us >> shift)] += 1
            else:
                counts[_LAST] += 1
                self._over += 1
        self._recorded.clear()

    def add(self, other: Histogram) -> None:
        """Add the counts of another histogram."""
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
        """Return ``counts`` in any order, without the cost of sorting. Do not keep it: it may change."""
        self.count()
        if isinstance(self._counts, defaultdict):
            return self._counts
        return {index: count for index, count in enumerate(self._counts) if count}

    @property
    def over(self) -> int:
        """The number of latencies over 60 s, which are counted as 60 s."""
        self.count()
        return self._over

    @property
    def total(self) -> int:
        """The number of latencies."""
        return sum(self.counts.values())

    def percentiles(self, *percents: float) -> list[float | None]:
        """Return percentiles.

        Args:
            percents: from 0 to 100, in ascending order.

        Returns:
            For each, the value in µs that this share of the latencies does not exceed, or None without any.
        """
        return [highest(index) for index in keys_at(self.counts, *percents)] or [None] * len(percents)

    def summary(self) -> dict[str, float | None]:
        """Return count, min, mean, percentiles and max, in µs, as reports have them."""
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
        """Count the latencies from ``begin`` to ``end`` (seconds), to the precision of a bucket."""
        return sum(n for index, n in self.counts.items() if begin * 1e6 <= highest(index) < end * 1e6)

    def encode(self) -> str:
        """Encode as HdrHistogram V2, compressed, in base64.

        Raises:
            MissingExtra: the ``hdrhistogram`` package is not installed.
        """
        return encode({lowest(index): count for index, count in self.counts.items()}, DIGITS)

    @classmethod
    def decode(cls, text: str) -> Histogram:
        """Decode an encoding of ``encode`` or of another program.

        Raises:
            ValueError: ``text`` is not an encoding.
            MissingExtra: the ``hdrhistogram`` package is not installed.
        """
        histogram = cls()
        for us, count in decode(text).items():
            histogram._counts[index_of(us)] += count  # by value: its buckets may differ from ours
        return histogram


def keys_at(counts: Mapping[int, int], *percents: float) -> list[int]:
    """Find the keys of percentiles. Ranks are rounded as HdrHistogram rounds them.

    Args:
        counts: counts by key, in any order.
        percents: from 0 to 100, in ascending order.

    Returns:
        For each percentage, the smallest key such that this share of the counts is at or below it. An empty
        list if there are no counts.
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
    """Encode counts as HdrHistogram V2, compressed, in base64.

    Args:
        counts: counts by value in µs.
        digits: the significant digits of the values.

    Raises:
        MissingExtra: the ``hdrhistogram`` package is not installed.
    """
    hdr = import_hdrh().HdrHistogram(LOWEST_US, HIGHEST_US, digits)
    for us, count in counts.items():
        hdr.record_value(us, count)
    return cast("bytes", hdr.encode()).decode("ascii")


def decode(text: str) -> dict[int, int]:
    """Decode an HdrHistogram encoding with any range and precision.

    Args:
        text: the encoding, in base64.

    Returns:
        The counts by the lowest value in µs of their bucket. Values outside 1 µs to 60 s are clamped.

    Raises:
        ValueError: ``text`` is not an encoding, or has a count of more than 2**40.
        MissingExtra: the ``hdrhistogram`` package is not installed.
    """
    histogram = import_hdrh().HdrHistogram
    try:
        hdr = histogram.decode(text)
    except Exception as error:  # the package raises what base64, zlib and ctypes raise
        raise ValueError(f"not an HdrHistogram encoding: {text[:40]!r}") from error
    counts: defaultdict[int, int] = defaultdict(int)
    for index in range(hdr.counts_len):
        if count := hdr.get_count_at_index(index):
            if count > _MAX_COUNT:  # the sum of several could overflow 64 bits
                raise ValueError(f"an HdrHistogram encoding with a count of {count:,}")
            counts[min(max(hdr.get_value_from_index(index), LOWEST_US), HIGHEST_US)] += count
    return dict(counts)


def import_hdrh() -> Any:
    """Import ``hdrh.histogram`` on first use.

    Raises:
        MissingExtra: the ``hdrhistogram`` package is not installed.
    """
    try:
        from hdrh import histogram  # type: ignore[import-untyped]  # the package has no types
    except ImportError:
        raise MissingExtra("greeter load", "load") from None
    return histogram


def _middle(index: int) -> float:
    low = lowest(index)
    return low + ((lowest(index + 1) - low) >> 1)

"""Prepare the figures of a report for charts: over time and over percentiles.

Invariant: the size is bounded, however long the run. A time series has at most 120 points, a percentile curve
has 20 points per decade, and a heat map has at most 40 rows.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from greeter.loadtest.metrics.histogram import keys_at, lowest
from greeter.loadtest.metrics.timeline import Bucket, Timeline, shift
from greeter.loadtest.plan.pacer import OpenLoop, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from greeter.loadtest.metrics.histogram import Histogram

_POINTS_PER_DECADE = 20
_MAX_ROWS = 40
_PERCENTS = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "max": 100.0}
MAX_SLICES = 120


@dataclass(frozen=True)
class TimeSlice:
    """An interval of the run: ``span`` seconds from ``begin`` seconds on, and the counts of that interval.

    A ``partial`` one is shorter than the others, because the run ended in it.
    """

    begin: float
    span: float
    bucket: Bucket
    partial: bool = False

    @property
    def middle(self) -> float:
        return round(self.begin + self.span / 2, 6)

    @property
    def end(self) -> float:
        return round(self.begin + self.span, 6)

    def per_second(self, name: str) -> float:
        """Return ``attempted``, ``greeted`` or ``failed`` per second."""
        return round(float(getattr(self.bucket, name)) / self.span, 3)

    @cached_property
    def latencies(self) -> dict[str, int]:
        """p50, p90, p95, p99 and maximum of the response times in µs; empty if there were none.

        As in all histograms, a latency is the upper bound of its bucket.
        """
        found = keys_at(self.bucket.latencies, *_PERCENTS.values())
        return {name: us + (1 << shift(us)) - 1 for name, us in zip(_PERCENTS, found, strict=False)}


def time_slices(width: float, rows: list[dict[str, Any]], duration: float) -> list[TimeSlice]:
    """Return the timeline of a run as at most MAX_SLICES time slices.

    The last slice ends with the run. If it would be shorter than half of the others, it is merged into the
    one before, because a rate over so short a time means little.

    Args:
        width: the length of a bucket in seconds.
        rows: the timeline of the report.
        duration: the length of the run in seconds.
    """
    buckets = Timeline.from_rows(width, rows).buckets
    each = -(-len(buckets) // MAX_SLICES) or 1  # buckets per slice
    width *= each
    found = [
        TimeSlice(round(index * width, 6), width, _sum(buckets[index * each : (index + 1) * each]))
        for index in range(-(-len(buckets) // each))
    ]
    if not found:
        return []
    last = found.pop()
    span = round(min(width, duration - last.begin), 6)
    if span <= 0:  # rounding of the clock
        span = width
    if found and span < width / 2:
        before = found.pop()
        both = _sum([before.bucket, last.bucket])
        found.append(TimeSlice(before.begin, round(width + span, 6), both))
    else:
        found.append(TimeSlice(last.begin, span, last.bucket, partial=span < 0.99 * width))
    return found


def on_grid(run: Sequence[TimeSlice], span: float) -> list[TimeSlice]:
    """Return a run in columns of ``span`` seconds, so that two runs with other buckets can be compared.

    A slice is counted in the column that has its middle.
    """
    columns: dict[int, list[Bucket]] = {}
    for time_slice in run:
        columns.setdefault(int(time_slice.middle / span), []).append(time_slice.bucket)
    end = run[-1].end if run else 0.0
    found = []
    for index, buckets in sorted(columns.items()):
        begin = round(index * span, 6)
        length = round(min(span, end - begin), 6)
        found.append(TimeSlice(begin, length, _sum(buckets), partial=length < 0.99 * span))
    return found


def _sum(buckets: Sequence[Bucket]) -> Bucket:
    """Return the sum of buckets that follow one another."""
    if len(buckets) == 1:
        return buckets[0]
    whole = Bucket()
    for bucket in buckets:
        whole.add(bucket, alongside=False)
    return whole


def planned_rate(plan: dict[str, Any]) -> list[tuple[float, float]]:
    """Return the scheduled rate as the corners of a line, which ends with the schedule.

    Args:
        plan: the JSON values of a plan.

    Returns:
        Pairs of seconds and connections per second; empty for a closed loop.
    """
    rate, count = plan["rate"] or 0.0, plan["count"]
    stages = [Stage(stage["duration_s"], stage["rate"]) for stage in plan["stages"]]
    if plan["mode"] == "closed" or not (stages or rate > 0):
        return []
    if not stages:
        stages = [Stage(plan["duration_s"] or (count or 0) / rate, rate)]
    end = OpenLoop(stages, rate, limit=count).length
    corners = [(0.0, rate)]
    for stage in stages:
        at, before = corners[-1]
        if at + stage.duration > end:  # the count is reached in this stage
            corners.append((end, before + (stage.rate - before) * (end - at) / stage.duration))
            break
        corners.append((at + stage.duration, stage.rate))
    return corners


def percentile_curve(histogram: Histogram) -> list[tuple[float, int]]:
    """Return pairs ``(x, µs)``: one in ``x`` connections took longer than that. The last is the maximum.

    Ranks are rounded as in HdrHistogram, so the curve passes through the report's percentiles. With that
    rounding, the maximum of N values is reached at x = 2 N.
    """
    end = 2.0 * histogram.total
    if not end:
        return []
    xs = [1.0]
    while (x := 10 ** (len(xs) / _POINTS_PER_DECADE)) < end:
        xs.append(x)
    xs.append(end)
    # The last percentile is given as 100: 100 * (1 - 1 / end) may be rounded to below the maximum.
    indices = keys_at(histogram.counts, *(100 * (1 - 1 / x) for x in xs[:-1]), 100)
    return [(float(f"{x:.6g}"), lowest(index + 1) - 1) for x, index in zip(xs, indices, strict=True)]


def row_bounds(*runs: Sequence[TimeSlice]) -> list[int]:
    """Return the bounds in µs of the rows of a heat map of ``runs``; empty if there are no latencies.

    A row holds the latencies with the same leading bits. The number of bits is the largest for which the rows
    do not exceed their maximum.
    """
    keys = {us for run in runs for time_slice in run for us in time_slice.bucket.latencies}
    if not keys:
        return []
    found: list[int] = []
    for bits in (6, 5, 4, 3, 2, 1):
        found = [_floor(min(keys), bits)]
        while found[-1] <= max(keys):
            found.append(found[-1] + (1 << shift(found[-1], bits)))
        if len(found) <= _MAX_ROWS + 1:
            break
    return found


def heat_rows(run: Sequence[TimeSlice], bounds: Sequence[int]) -> list[list[int]]:
    """Return for each row the number of response times in each time slice."""
    counts = [[0] * len(run) for _ in bounds[1:]]
    for column, time_slice in enumerate(run):
        for us, count in time_slice.bucket.latencies.items():
            counts[bisect_right(bounds, us) - 1][column] += count
    return counts


def _floor(us: int, bits: int) -> int:
    return us >> shift(us, bits) << shift(us, bits)

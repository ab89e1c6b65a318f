"""The figures of a report in the shape that a chart wants them: along time, along the percentiles.

The law: nothing here grows with the run. Time has as many points as the timeline has buckets, a curve has
twenty points for each tenfold, and a heat map has at most 40 rows.
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

_PER_TENFOLD = 20
_MOST_ROWS = 40
_PERCENTS = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}


@dataclass(frozen=True)
class Slot:
    """A stretch of the run: ``span`` seconds from ``begin`` seconds on, and what was counted in it."""

    begin: float
    span: float
    bucket: Bucket

    @property
    def middle(self) -> float:
        return round(self.begin + self.span / 2, 6)

    @property
    def end(self) -> float:
        return round(self.begin + self.span, 6)

    def per_second(self, name: str) -> float:
        """``attempted``, ``greeted`` or ``failed``, by the second."""
        return round(float(getattr(self.bucket, name)) / self.span, 3)

    @cached_property
    def latencies(self) -> dict[str, int]:
        """Median, p90, p99 and maximum of the response times in µs; empty when there were none.

        As everywhere, a latency is the upper end of its class: of those with the same leading bits.
        """
        found = keys_at(self.bucket.latencies, *_PERCENTS.values())
        return {name: us + (1 << shift(us)) - 1 for name, us in zip(_PERCENTS, found, strict=False)}


def slots(width: float, rows: list[dict[str, Any]], duration: float) -> list[Slot]:
    """The timeline of a run that took ``duration`` seconds.

    The last bucket is as long as the run went on in it. When that is less than half a bucket, a rate would
    be made of next to nothing, so that it is counted to the one before.
    """
    buckets = Timeline.from_rows(width, rows).buckets
    found = [Slot(index * width, width, bucket) for index, bucket in enumerate(buckets)]
    if not found:
        return []
    last = found.pop()
    span = round(min(width, duration - last.begin), 6)
    if span <= 0:  # a clock that was rounded
        span = width
    if found and span < width / 2:
        before = found.pop()
        before.bucket.add(last.bucket, alongside=False)
        found.append(Slot(before.begin, round(width + span, 6), before.bucket))
    else:
        found.append(Slot(last.begin, span, last.bucket))
    return found


def asked_for(plan: dict[str, Any]) -> list[tuple[float, float]]:
    """The rate of the plan's schedule, as the corners ``(seconds, connections per second)`` of a line that
    ends where the schedule does; nothing of a closed loop."""
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
        if at + stage.duration > end:  # the count is reached within it
            corners.append((end, before + (stage.rate - before) * (end - at) / stage.duration))
            break
        corners.append((at + stage.duration, stage.rate))
    return corners


def curve(histogram: Histogram) -> list[tuple[float, int]]:
    """Pairs ``(x, µs)``: one connection in ``x`` took longer than that. The last is the slowest of all.

    Ranks are rounded as HdrHistogram rounds them, so that the curve goes through the report's percentiles;
    with that rounding the slowest of N is met at x = 2 N.
    """
    end = 2.0 * histogram.total
    if not end:
        return []
    xs = [1.0]
    while (x := 10 ** (len(xs) / _PER_TENFOLD)) < end:
        xs.append(x)
    xs.append(end)
    # The last is said outright: 100 * (1 - 1 / end) can fall a rounding short of the slowest.
    indices = keys_at(histogram.counts, *(100 * (1 - 1 / x) for x in xs[:-1]), 100)
    return [(float(f"{x:.6g}"), lowest(index + 1) - 1) for x, index in zip(xs, indices, strict=True)]


def edges(*runs: Sequence[Slot]) -> list[int]:
    """The bounds in µs of the rows of a heat map that has all of ``runs``; none where nothing was timed.

    A row has the latencies with the same leading bits, as many bits as the number of rows allows.
    """
    keys = {us for run in runs for slot in run for us in slot.bucket.latencies}
    if not keys:
        return []
    found: list[int] = []
    for bits in (6, 5, 4, 3, 2, 1):
        found = [_floor(min(keys), bits)]
        while found[-1] <= max(keys):
            found.append(found[-1] + (1 << shift(found[-1], bits)))
        if len(found) <= _MOST_ROWS + 1:
            break
    return found


def heat(run: Sequence[Slot], bounds: Sequence[int]) -> list[list[int]]:
    """How many response times lie in each row, for each slot."""
    counts = [[0] * len(run) for _ in bounds[1:]]
    for column, slot in enumerate(run):
        for us, count in slot.bucket.latencies.items():
            counts[bisect_right(bounds, us) - 1][column] += count
    return counts


def _floor(us: int, bits: int) -> int:
    return us >> shift(us, bits) << shift(us, bits)

"""The heat map of a report: the distribution of the response times over time."""

from __future__ import annotations

from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING

from greeter.loadtest.plan.units import latency, number, seconds
from greeter.loadtest.report.chart_parts import (
    NO_RESPONSES,
    Chart,
    Table,
    latency_axis,
    length,
    span_text,
    time_axis,
)
from greeter.loadtest.report.series import heat_rows, on_grid, row_bounds
from greeter.loadtest.report.vega import Bar, Bars, Figure, Readout

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from greeter.loadtest.report.series import TimeSlice
    from greeter.loadtest.report.vega import Axis

_HINT = (
    "Each cell counts the responses that took that long at that time. A stronger colour means more responses."
)
_COLOURS = 5
_COLUMNS = 10  # of the table


def heat_maps(now: Sequence[TimeSlice], then: Sequence[TimeSlice] | None) -> Iterator[Chart]:
    """The distribution of the response times over time; both runs have the same rows and columns."""
    bounds = row_bounds(now, then or ())
    if then:
        span = max([*(run[0].span for run in (now, then) if run)])
        now, then = on_grid(now, span), on_grid(then, span)
    maps = [heat_rows(run, bounds) for run in (now, then or ())]
    most = max((count for rows in maps for row in rows for count in row), default=0)
    for suffix, title, run, rows in zip(("", "-before"), ("", ", before"), (now, then), maps, strict=True):
        if run is None:
            continue
        timed = any(map(any, rows))
        yield Chart(
            f"heat{suffix}",
            f"Heat map of response times{title}",
            "On the same scales." if suffix else _HINT,
            f"{number(sum(map(sum, rows)))} response times over {length(run)}." if timed else NO_RESPONSES,
            _figure(run, rows, bounds, most, time_axis(now, then)) if timed else None,
            _table(run, rows, bounds),
        )


def _figure(run: Sequence[TimeSlice], rows: list[list[int]], bounds: list[int], most: int, x: Axis) -> Figure:
    steps = heat_steps(most)
    cells: list[list[Bar]] = [[] for _ in steps]
    readouts = []
    for row, (low, high) in zip(rows, pairwise(bounds), strict=True):
        for time_slice, count in zip(run, row, strict=True):
            if count:
                step = next(index for index, (_, last) in enumerate(steps) if count <= last)
                place = (time_slice.begin, time_slice.end, low, high)
                cells[step].append(Bar(*place))
                took = f"{number(count)} took {latency(low)} to {latency(high)}"
                readouts.append(Readout(f"{span_text(time_slice)}: {took}", *place))
    names = [
        number(first) if first == last else f"{number(first)} to {number(last)}" for first, last in steps
    ]
    scale = [round(index * 4 / max(1, len(steps) - 1)) for index in range(len(steps))]
    return Figure(
        x=x,
        y=latency_axis(bounds),
        marks=[
            Bars(name, f"heat-{color}", bars) for name, color, bars in zip(names, scale, cells, strict=True)
        ],
        readouts=readouts,
        height=300,
    )


def heat_steps(most: int) -> list[tuple[int, int]]:
    """Return the ranges of counts that have a colour each, on a logarithmic scale."""
    ends = sorted({round(most ** (step / _COLOURS)) for step in range(1, _COLOURS + 1)})
    return list(zip([1, *(end + 1 for end in ends)], ends, strict=False))


def _table(run: Sequence[TimeSlice], rows: list[list[int]], bounds: list[int]) -> Table:
    """Return the heat map as a table with at most _COLUMNS columns."""
    each = max(1, ceil(len(run) / _COLUMNS))
    begins = range(0, len(run), each)
    spans = [(run[begin], run[min(begin + each, len(run)) - 1]) for begin in begins]
    return Table(
        ("response time", *(f"{number(a.begin)} to {seconds(b.end)}" for a, b in spans)),
        [
            [
                f"{latency(low)} to {latency(high)}",
                *(number(sum(row[begin : begin + each])) for begin in begins),
            ]
            for row, (low, high) in zip(rows, pairwise(bounds), strict=True)
            if any(row)
        ],
    )

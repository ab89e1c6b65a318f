"""What the charts of a report share: a chart with its table, the axes, limits and readouts.

Invariants:

- A chart has a summary and a table with the same values, for screen readers and for copying.
- The charts over time share their axis of time; those of latencies have a logarithmic axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from greeter.core.durations import SECONDS
from greeter.errors import ConfigError
from greeter.loadtest.plan.threshold import Threshold
from greeter.loadtest.plan.units import LONGEST_US, latency, number, seconds
from greeter.loadtest.report.vega import NEW_LINE, Axis, Bar, Bars, Figure, Limit, Line, Readout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from greeter.loadtest.report.report import LoadReport
    from greeter.loadtest.report.series import TimeSlice

    Columns = dict[str, Callable[[TimeSlice], str]]

_TICKS = [step * 10**n for n in range(9) for step in (1, 2, 5)]  # in µs
_FEW = 15
NO_RESPONSES = "No response was timed."
DOTTED_HINT = " Dotted lines: the run before."
LIMIT_HINT = " Dash-dotted lines: thresholds."


@dataclass(frozen=True)
class Table:
    """A table of text; the first cell of each row is its heading."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Chart:
    """A chart and its text alternative.

    - ``hint``: how to read it.
    - ``summary``: what it shows, in one sentence.
    - ``figure``: what to draw; None if there is nothing.
    - ``table``: the same values as text.
    """

    id: str
    title: str
    hint: str
    summary: str
    figure: Figure | None
    table: Table


def stacked(
    run: Sequence[TimeSlice], parts: dict[str, tuple[str, Callable[[TimeSlice], float]]]
) -> Iterator[Bars]:
    """Yield bars, one per time slice and as wide as it, each part on top of those before; no empty part."""
    heights = [0.0] * len(run)
    for name, (color, value) in parts.items():
        bars = []
        for index, time_slice in enumerate(run):
            below, heights[index] = heights[index], round(heights[index] + value(time_slice), 3)
            if heights[index] > below:
                bars.append(
                    Bar(time_slice.begin, time_slice.end, below, heights[index], faint=time_slice.partial)
                )
        if bars:
            yield Bars(name, color, bars)


def figure_from_zero(
    now: Sequence[TimeSlice],
    then: Sequence[TimeSlice] | None,
    marks: Sequence[Bars | Line],
    title: str,
    columns: Columns,
    limits: Sequence[Limit] = (),
    *,
    whole: bool = False,
) -> Figure | None:
    """Return a figure over time whose values begin at 0; None if all of them are 0."""
    values = [y for mark in marks for y in _heights(mark)]
    most = max(values, default=0)
    if not most or not (now or then):
        return None
    most = max(most, *(limit.value for limit in limits)) if limits else most
    return Figure(
        x=time_axis(now, then),
        y=Axis(title=title, low=0, high=1.08 * most, whole=whole and most < _FEW),
        marks=marks,
        limits=limits,
        readouts=time_readouts(now, then, columns),
        height=200,
    )


def _heights(mark: Bars | Line) -> list[float]:
    return [bar.y2 for bar in mark.bars] if isinstance(mark, Bars) else [y for _, y in mark.points]


def line_over_time(
    name: str,
    color: str,
    run: Sequence[TimeSlice],
    value: Callable[[TimeSlice], float],
    *,
    before: bool = False,
    width: float = 2,
) -> Line:
    """Return a line through the middle of each slice, or through both ends of a single slice.

    Args:
        name: its name in the legend.
        color: a variable of the style sheet, without dashes.
        run: the time slices.
        value: the value of a slice.
        before: whether the line belongs to the baseline.
        width: in pixels.
    """
    points = [(time_slice.middle, value(time_slice)) for time_slice in run]
    if len(run) == 1:
        points = [(run[0].begin, points[0][1]), (run[0].end, points[0][1])]
    return Line(name + ", before" * before, color, points, before=before, width=width)


def time_axis(now: Sequence[TimeSlice], then: Sequence[TimeSlice] | None) -> Axis:
    """Return the time axis, which all charts over time share."""
    end = max((run[-1].end for run in (now, then) if run), default=1)
    return Axis(title="seconds since the start", low=0, high=end)


def latency_axis(us: Sequence[float], limits: Sequence[Limit] = (), what: str = "response time") -> Axis:
    """Return a logarithmic axis that covers the times ``us`` (microseconds), with at least two ticks."""
    values = [*us, *(limit.value for limit in limits)]
    low, high = max(1, min(values)), max(1, *values)
    ticks = _TICKS if high < 1000 * low else _TICKS[::3]
    if sum(low <= tick <= high for tick in ticks) < 2:
        low = max(tick for tick in ticks if tick <= low)
        high = min(tick for tick in ticks if tick > high)
    low, high = low / 1.2, high * 1.2
    shown = {
        tick: latency(tick) if tick < LONGEST_US else seconds(tick / 1e6)
        for tick in ticks
        if low <= tick <= high
    }
    return Axis(title=f"{what}, on a log scale", low=low, high=high, log=True, ticks=shown)


def limits_on(report: LoadReport, *metrics: str) -> list[Limit]:
    """Return the thresholds of a report on ``metrics``; those of latencies in microseconds."""
    found = []
    for row in report.thresholds:
        try:
            threshold = Threshold.parse(row["expr"])
        except ConfigError:  # an expression from a later version
            continue
        if threshold.metric in metrics and threshold.value > 0:
            scale = SECONDS[threshold.unit] * 1e6 if threshold.unit in SECONDS else 1
            found.append(Limit(threshold.expr, threshold.value * scale, below=">" in threshold.op))
    return sorted(found, key=lambda limit: limit.value)


def time_readouts(
    now: Sequence[TimeSlice],
    then: Sequence[TimeSlice] | None,
    columns: Columns,
) -> list[Readout]:
    """Return what the chart shows of each slice, with the values of the other run at that time."""
    longest = now if len(now) >= len(then or ()) else then or ()
    found = []
    for time_slice in longest:
        texts = []
        for run, label in ((now, ""), (then or (), "before: ")):
            at = time_slice if run is longest else _at(run, time_slice.middle)
            if at is not None:
                texts.append(label + ", ".join(f"{name} {show(at)}" for name, show in columns.items()))
        text = f"{span_text(time_slice)}: {NEW_LINE.join(texts)}"
        found.append(Readout(text, time_slice.begin, time_slice.end))
    return found


def _at(run: Sequence[TimeSlice], moment: float) -> TimeSlice | None:
    return next((found for found in run if found.begin <= moment < found.end), None)


def span_text(time_slice: TimeSlice) -> str:
    partial = " (partial)" if time_slice.partial else ""
    return f"{number(time_slice.begin)} to {seconds(time_slice.end)}{partial}"


def time_table(now: Sequence[TimeSlice], then: Sequence[TimeSlice] | None, columns: Columns) -> Table:
    """Return a table with a row per time slice; with a baseline, each column appears twice."""
    heads = list(columns)
    if then is not None:
        heads += [f"{name}, before" for name in columns]
    rows = []
    for index in range(max(len(now), len(then or ()))):
        here = [run[index] if index < len(run) else None for run in (now, then) if run is not None]
        named = next(time_slice for time_slice in here if time_slice)
        cells = [show(time_slice) if time_slice else "-" for time_slice in here for show in columns.values()]
        rows.append([span_text(named), *cells])
    return Table(("time", *heads), rows)


def length(run: Sequence[TimeSlice]) -> str:
    return seconds(run[-1].end)

"""The charts over time: response times, rates, open connections and errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from greeter.loadtest.metrics.timeline import add_counts
from greeter.loadtest.plan.units import latency, number
from greeter.loadtest.report.chart_parts import (
    DOTTED_HINT,
    LIMIT_HINT,
    NO_RESPONSES,
    Chart,
    figure_from_zero,
    latency_axis,
    length,
    limits_on,
    line_over_time,
    stacked,
    time_axis,
    time_readouts,
    time_table,
)
from greeter.loadtest.report.series import planned_rate
from greeter.loadtest.report.vega import Bars, Figure, Line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greeter.loadtest.report.chart_parts import Columns
    from greeter.loadtest.report.report import LoadReport
    from greeter.loadtest.report.series import TimeSlice

_STATS = ("p50", "p90", "p95", "p99", "max")
_ERROR_COLOURS = 6
# Lines may coincide. The wider ones are drawn first, so that they stay visible.
_WIDTHS = {"max": 4.0}


def latencies(report: LoadReport, now: Sequence[TimeSlice], then: Sequence[TimeSlice] | None) -> Chart:
    """Percentiles of the response time over time."""
    lines: list[Line] = []
    for run, stats in ((now, tuple(reversed(_STATS))), (then or (), ("p99", "p50"))):
        timed = [time_slice for time_slice in run if time_slice.latencies]
        lines += [
            line_over_time(stat, stat, timed, _latency(stat), before=run is then, width=_WIDTHS.get(stat, 2))
            for stat in stats
            if timed
        ]
    limits = limits_on(report, "response")
    columns = {stat: _latency_cell(stat) for stat in _STATS}
    worst = max((time_slice.latencies["max"] for time_slice in now if time_slice.latencies), default=None)
    figure = None
    if lines:
        figure = Figure(
            x=time_axis(now, then),
            y=latency_axis([us for line in lines for _, us in line.points], limits),
            marks=lines,
            limits=limits,
            readouts=time_readouts(now, then, columns),
        )
    return Chart(
        "latencies",
        "Response times over time",
        "From the scheduled start of a connection to the end of its greeting, shown at its end."
        + DOTTED_HINT * bool(then)
        + LIMIT_HINT * bool(limits and figure),
        NO_RESPONSES if worst is None else f"Over {length(now)}, the slowest response took {latency(worst)}.",
        figure,
        time_table(now, then, columns),
    )


def _latency(stat: str) -> Callable[[TimeSlice], float]:
    return lambda time_slice: time_slice.latencies[stat]


def _latency_cell(stat: str) -> Callable[[TimeSlice], str]:
    return lambda time_slice: latency(time_slice.latencies.get(stat))


def rates(report: LoadReport, now: Sequence[TimeSlice], then: Sequence[TimeSlice] | None) -> Chart:
    """Connections per second: greeted, failed, begun and planned."""
    marks: list[Bars | Line] = [
        *stacked(now, {"greeted": ("greeted", _greeted), "failed": ("failed", _failed)}),
        line_over_time("begun", "begun", now, _begun),
    ]
    if planned := planned_rate(report.plan):
        marks.append(Line("target", "muted", planned, dashed=True))
    if then:
        marks.append(line_over_time("greeted", "before", then, _greeted, before=True))
    limits = limits_on(report, "rate")
    columns: Columns = {
        "begun": lambda time_slice: f"{number(_begun(time_slice))}/s",
        "greeted": lambda time_slice: f"{number(_greeted(time_slice))}/s",
        "failed": lambda time_slice: f"{number(_failed(time_slice))}/s",
    }
    return Chart(
        "rates",
        "Connections per second",
        "Greeted and failed are counted when a connection ends, begun when it starts."
        + LIMIT_HINT * bool(limits),
        f"Over {length(now)}, {number(report.rate['greeted'] or 0)} per second were greeted on average, "
        f"{number(max(map(_greeted, now)))} at most."
        if now
        else "No connection ended.",
        figure_from_zero(now, then, marks, "connections per second", columns, limits),
        time_table(now, then, columns),
    )


def open_connections(now: Sequence[TimeSlice], then: Sequence[TimeSlice] | None) -> Chart:
    """Open connections over time."""
    most = max(map(_open, now), default=0)
    marks: list[Bars | Line] = [*stacked(now, {"open": ("open", _open)})]
    if then:
        marks.append(line_over_time("open", "before", then, _open, before=True))
    columns: Columns = {"open": lambda time_slice: number(_open(time_slice))}
    return Chart(
        "open",
        "Open connections",
        "The maximum number of connections open at once." + DOTTED_HINT * bool(then),
        f"Over {length(now)}, at most {number(most)} were open." if most else "No connection was open.",
        figure_from_zero(now, then, marks, "connections", columns, whole=True),
        time_table(now, then, columns),
    )


def failures(now: Sequence[TimeSlice], then: Sequence[TimeSlice] | None) -> Chart:
    """Failed connections per second, by class."""
    most = max(map(_failed, now), default=0)
    totals: dict[str, int] = {}
    for time_slice in now:
        add_counts(totals, time_slice.bucket.errors)
    classes = sorted(totals, key=lambda name: -totals[name])[:_ERROR_COLOURS]
    parts = {name: (f"error-{index}", _class(name)) for index, name in enumerate(classes)}
    if any(_rest(classes)(time_slice) for time_slice in now):  # more classes, or a report of greeter 0.1
        parts["other classes" if parts else "failed"] = ("failed", _rest(classes))
    marks: list[Bars | Line] = [*stacked(now, parts)]
    if then:
        marks.append(line_over_time("failed", "before", then, _failed, before=True))
    columns: Columns = {"failed": lambda time_slice: f"{number(_failed(time_slice))}/s"}
    columns |= {name: _class_cell(name) for name in classes if len(parts) > 1}
    return Chart(
        "failures",
        "Errors over time",
        "Failed connections per second, counted when they ended." + DOTTED_HINT * bool(then),
        f"Over {length(now)}, at most {number(most)} per second failed." if most else "No connection failed.",
        figure_from_zero(now, then, marks, "failures per second", columns),
        time_table(now, then, columns),
    )


def _class(name: str) -> Callable[[TimeSlice], float]:
    """Return what gives the failures of a class per second."""
    return lambda time_slice: time_slice.bucket.errors.get(name, 0) / time_slice.span


def _rest(names: Sequence[str]) -> Callable[[TimeSlice], float]:
    """Return what gives the failures per second that are of none of the classes ``names``."""

    def rest(time_slice: TimeSlice) -> float:
        bucket = time_slice.bucket
        known = sum(bucket.errors.get(name, 0) for name in names)
        return max(0, bucket.failed - known) / time_slice.span

    return rest


def _class_cell(name: str) -> Callable[[TimeSlice], str]:
    value = _class(name)
    return lambda time_slice: f"{number(value(time_slice))}/s"


def _begun(time_slice: TimeSlice) -> float:
    return time_slice.per_second("attempted")


def _greeted(time_slice: TimeSlice) -> float:
    return time_slice.per_second("greeted")


def _failed(time_slice: TimeSlice) -> float:
    return time_slice.per_second("failed")


def _open(time_slice: TimeSlice) -> float:
    return time_slice.bucket.open

"""The charts of a report: rates, errors and latencies over time, and percentiles.

Invariants:

- A chart is a function of the report.
- A chart has a summary and a table with the same values, for screen readers and for copying.
"""

from __future__ import annotations

from itertools import pairwise
from math import ceil, log10
from typing import TYPE_CHECKING, Any

from greeter.loadtest.plan.units import latency, number, seconds
from greeter.loadtest.report.plotly import (
    TIME,
    Chart,
    Table,
    axis_title,
    bars,
    in_legend_group,
    latency_axis,
    line,
    line_over_time,
    plotly_figure,
    time_points,
    time_table,
)
from greeter.loadtest.report.series import heat_rows, percentile_curve, planned_rate, row_bounds, time_slices

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from greeter.loadtest.report.plotly import Axis, Trace
    from greeter.loadtest.report.report import LoadReport
    from greeter.loadtest.report.series import TimeSlice

# The names of the phases, and from where to where each is timed.
PHASES = {
    "connect": ("connect", "from the start of the connect to the established connection"),
    "first_byte": ("first byte", "from the start of the connect to the first byte of the greeting"),
    "service": ("service", "from the start of the connect to the end of the greeting"),
    "response": ("response", "from the scheduled start to the end of the greeting"),
    "failed": ("failed after", "from the start of the connect to the failure"),
}
_POWERS_OF_TEN = [10**n for n in range(9)]
_NO_RESPONSES = "No response was timed."
_PERCENTS = (0, 50, 75, 90, 95, 99, 99.9, 99.99, 99.999, 99.9999)
_HEAT_HINT = (
    "Each cell counts the responses that took that long at that time. A stronger colour means more responses."
)
_HEAT_COLUMNS = 10
_FEW_POINTS = 15
_DOTTED_HINT = " Dotted lines: the run before."
# Lines may coincide. The wider ones are drawn first, so that they stay visible.
_LATENCY_WIDTHS = {"max": 4.0}
_PHASE_WIDTHS = {"first_byte": 6.0, "service": 4.0}


def charts(report: LoadReport, baseline: LoadReport | None = None) -> Iterator[Chart]:
    """Yield the charts of a report.

    Args:
        report: the report.
        baseline: an older run, drawn into the same charts.

    Raises:
        ValueError: a histogram is invalid.
    """
    now = _time_slices(report)
    then = None if baseline is None else _time_slices(baseline)
    yield rates(report, now, then)
    yield open_connections(now, then)
    yield failures(now, then)
    yield latencies(now, then)
    yield from heat_maps(now, then)
    yield percentiles(report, baseline)


def _time_slices(report: LoadReport) -> list[TimeSlice]:
    return time_slices(report.timeline_width_s, report.timeline, report.duration_s)


def rates(report: LoadReport, now: Sequence[TimeSlice], then: Sequence[TimeSlice] | None) -> Chart:
    """Connections per second: greeted, failed, begun and planned."""
    data = [
        bars("greeted", now, _greeted, "greeted"),
        bars("failed", now, _failed, "failed"),
        line_over_time("begun", now, _begun, "begun"),
    ]
    if planned := planned_rate(report.plan):
        xs, ys = zip(*planned, strict=True)
        data.append({**line("target", xs, ys, "muted"), "mode": "lines", "hoverinfo": "skip"})
        data[-1]["line"]["dash"] = "dash"
    if then:
        data.append(line_over_time("greeted", then, _greeted, "before", before=True))
    most = max((y for trace in data for y in trace["y"]), default=0)
    return Chart(
        "rates",
        "Connections per second",
        "Greeted and failed are counted when a connection ends, begun when it starts.",
        f"Over {_length(now)}, {number(report.rate['greeted'] or 0)} per second were greeted on average, "
        f"{number(max(map(_greeted, now)))} at most."
        if now
        else "No connection ended.",
        plotly_figure(
            data, x=_time(now, then), y=_from_zero(most, "/s", "connections per second"), barmode="stack"
        )
        if now or then
        else None,
        time_table(
            now,
            then,
            {
                "begun per second": lambda time_slice: number(_begun(time_slice)),
                "greeted per second": lambda time_slice: number(_greeted(time_slice)),
                "failed per second": lambda time_slice: number(_failed(time_slice)),
            },
        ),
    )


def open_connections(now: Sequence[TimeSlice], then: Sequence[TimeSlice] | None) -> Chart:
    """Open connections over time."""
    most = max(map(_open, now), default=0)
    return Chart(
        "open",
        "Open connections",
        "The maximum number of connections open at once.",
        f"Over {_length(now)}, at most {number(most)} were open." if most else "No connection was open.",
        _columns("open", now, then, _open, "open", "", "connections"),
        time_table(now, then, {"open": lambda time_slice: number(_open(time_slice))}),
    )


def failures(now: Sequence[TimeSlice], then: Sequence[TimeSlice] | None) -> Chart:
    """Failed connections per second."""
    most = max(map(_failed, now), default=0)
    return Chart(
        "failures",
        "Errors over time",
        "Failed connections per second, counted when they ended. “Errors” has the reasons.",
        f"Over {_length(now)}, at most {number(most)} per second failed."
        if most
        else "No connection failed.",
        _columns("failed", now, then, _failed, "failed", "/s", "failures per second"),
        time_table(now, then, {"failed per second": lambda time_slice: number(_failed(time_slice))}),
    )


def latencies(now: Sequence[TimeSlice], then: Sequence[TimeSlice] | None) -> Chart:
    """Percentiles of the response time over time."""
    data: list[Trace] = []
    for run, stats in ((now, ("max", "p99", "p90", "p50")), (then or (), ("p99", "p50"))):
        timed = [time_slice for time_slice in run if time_slice.latencies]
        for stat in stats if timed else ():
            points = time_points(timed, [time_slice.latencies[stat] / 1e6 for time_slice in timed])
            trace = line(stat, *points, stat, before=run is then, show="%{y:.3~s}s")
            data.append(in_legend_group(trace, stat, _LATENCY_WIDTHS))
    ys = [y * 1e6 for trace in data for y in trace["y"]]

    def cell(stat: str) -> Callable[[TimeSlice], str]:
        return lambda time_slice: latency(time_slice.latencies.get(stat))

    worst = max((time_slice.latencies["max"] for time_slice in now if time_slice.latencies), default=None)
    return Chart(
        "latencies",
        "Response times over time",
        "From the scheduled start of a connection to the end of its greeting, shown at its end."
        + _DOTTED_HINT * bool(then),
        _NO_RESPONSES
        if worst is None
        else f"Over {_length(now)}, the slowest response took {latency(worst)}.",
        plotly_figure(data, x=_time(now, then), y=latency_axis(ys), height=340) if data else None,
        time_table(now, then, {stat: cell(stat) for stat in ("p50", "p90", "p99", "max")}),
    )


def heat_maps(now: Sequence[TimeSlice], then: Sequence[TimeSlice] | None) -> Iterator[Chart]:
    """The distribution of the response times over time; both runs have the same scales."""
    bounds = row_bounds(now, then or ())
    maps = [heat_rows(run, bounds) for run in (now, then or ())]
    most = max((count for rows in maps for row in rows for count in row), default=0)
    for suffix, title, run, rows in zip(("", "-before"), ("", ", before"), (now, then), maps, strict=True):
        if run is None:
            continue
        timed = any(map(any, rows))
        yield Chart(
            f"heat{suffix}",
            f"Heat map of response times{title}",
            "On the same scales." if suffix else _HEAT_HINT,
            f"{number(sum(map(sum, rows)))} response times over {_length(run)}." if timed else _NO_RESPONSES,
            _heat_figure(run, rows, bounds, most, _time(now, then)) if timed else None,
            _heat_table(run, rows, bounds),
        )


def _heat_figure(
    run: Sequence[TimeSlice], rows: list[list[int]], bounds: list[int], most: int, x: Axis
) -> dict[str, Any]:
    marks = [*(mark for mark in _POWERS_OF_TEN if 2 * mark <= most), most]
    trace: Trace = {
        "type": "heatmap",
        "x": [run[0].begin, *(time_slice.end for time_slice in run)],
        "y": [us / 1e6 for us in bounds],
        "z": [[round(log10(count), 2) if count else None for count in row] for row in rows],
        "customdata": rows,
        "hovertemplate": "%{customdata} took about %{y:.2~s}s<br>around %{x:.4~g} s<extra></extra>",
        "hoverongaps": False,
        "zmin": 0,
        "zmax": max(1.0, round(log10(most), 2)),
        "colorscale": [[step / 4, f"var(--heat-{step})"] for step in range(5)],
        "colorbar": {
            "tickvals": [log10(mark) for mark in marks],
            "ticktext": [number(mark) for mark in marks],
            "title": {"text": "responses", "side": "right", "font": {"size": 11, "color": "var(--muted)"}},
            "thickness": 8,
            "outlinewidth": 0,
        },
    }
    y = {**latency_axis(bounds), "showgrid": False}
    return plotly_figure([trace], x=x, y=y, height=340, hovermode="closest")


def _heat_table(run: Sequence[TimeSlice], rows: list[list[int]], bounds: list[int]) -> Table:
    """Return the heat map as a table with at most _HEAT_COLUMNS columns."""
    each = max(1, ceil(len(run) / _HEAT_COLUMNS))
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


def percentiles(report: LoadReport, baseline: LoadReport | None) -> Chart:
    """The percentile curve on the logarithmic scale of HdrHistogram."""
    data: list[Trace] = []
    rows = []
    for run in (report, baseline):
        for phase, (name, _) in PHASES.items():
            if run is None or not (points := percentile_curve(histogram := run.histogram(phase))):
                continue
            xs = [x for x, _ in points]
            trace = line(name, xs, [us / 1e6 for _, us in points], phase, before=run is baseline)
            trace["mode"] = "lines+markers" if len(xs) <= _FEW_POINTS else "lines"
            trace["customdata"] = [_percent(x) for x in xs]
            trace["hovertemplate"] = (
                f"<b>{trace['name']}</b><br>%{{customdata}} % took at most %{{y:.3~s}}s<extra></extra>"
            )
            data.append(
                in_legend_group(trace, name, {PHASES[key][0]: width for key, width in _PHASE_WIDTHS.items()})
            )
            shown = [p for p in _PERCENTS if histogram.total >= round(100 / (100 - p))]
            cells = [latency(us) for us in histogram.percentiles(*shown, 100)]
            cells[-1:-1] = ["-"] * (len(_PERCENTS) - len(shown))
            rows.append([trace["name"], number(histogram.total), *cells])
    ys = [y * 1e6 for trace in data for y in trace["y"]]
    far = max((trace["x"][-1] for trace in data), default=10)
    marks = [mark for mark in (1, 2, *_POWERS_OF_TEN[1:], 10**9) if mark <= max(far, 10)]
    x = {
        **axis_title("percentile, on a log scale"),
        "type": "log",
        "tickvals": marks,
        "ticktext": [f"p{_percent(mark)}" for mark in marks],
        "range": [0, log10(max(far, 10)) + 0.05],
    }
    return Chart(
        "percentiles",
        "Percentiles",
        "p99.9 is the value that 999 of 1,000 connections did not exceed. The last point is the maximum."
        + _DOTTED_HINT * (baseline is not None),
        f"Percentile curves of {', '.join(trace['name'] for trace in data)}."
        if data
        else "Nothing was timed.",
        plotly_figure(
            data, x=x, y=latency_axis(ys, "latency"), height=420, hovermode="closest", showlegend=True
        )
        if data
        else None,
        Table(("phase", "count", "min", *(f"p{p:g}" for p in _PERCENTS[1:]), "max"), rows),
    )


def _percent(x: float) -> str:
    """Return the percentile that one in ``x`` exceeds, with enough digits to distinguish it from 100."""
    digits = max(0, ceil(log10(x)) - 1)
    text = f"{100 * (1 - 1 / x):.{digits}f}"
    return text.rstrip("0").rstrip(".") if digits else text


def _columns(
    name: str,
    now: Sequence[TimeSlice],
    then: Sequence[TimeSlice] | None,
    value: Callable[[TimeSlice], float],
    color: str,
    unit: str,
    what: str,
) -> dict[str, Any] | None:
    """Return bars and, for the baseline, a line; None if all values are 0."""
    data = [bars(name, now, value, color)]
    if then:
        data.append(line_over_time(name, then, value, "before", before=True))
    most = max((y for trace in data for y in trace["y"]), default=0)
    return (
        plotly_figure(data, x=_time(now, then), y=_from_zero(most, unit, what), height=260) if most else None
    )


def _time(now: Sequence[TimeSlice], then: Sequence[TimeSlice] | None) -> Axis:
    """Return the time axis, which all charts over time share."""
    return {**TIME, "range": [0, max((run[-1].end for run in (now, then) if run), default=1)]}


def _from_zero(most: float, unit: str, what: str) -> Axis:
    axis: Axis = {
        "range": [0, 1.08 * most or 1],
        "ticksuffix": unit,
        "tickformat": ",~r",
        "hoverformat": ",.4~r",
    }
    if not unit and most < _FEW_POINTS:
        axis["dtick"] = max(1, round(most / 5))  # whole connections only
    return {**axis_title(what), **axis}


def _length(run: Sequence[TimeSlice]) -> str:
    return seconds(run[-1].end)


def _begun(time_slice: TimeSlice) -> float:
    return time_slice.per_second("attempted")


def _greeted(time_slice: TimeSlice) -> float:
    return time_slice.per_second("greeted")


def _failed(time_slice: TimeSlice) -> float:
    return time_slice.per_second("failed")


def _open(time_slice: TimeSlice) -> float:
    return time_slice.bucket.open

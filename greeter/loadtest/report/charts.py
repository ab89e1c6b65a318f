"""The charts of a report: what happened along time, and how long it took for how many.

The law: a chart is a function of the report. It comes with a sentence that says what is in it and with its
figures as a table, so that whoever cannot see it, or wants to copy from it, misses nothing.
"""

from __future__ import annotations

from itertools import pairwise
from math import ceil, log10
from typing import TYPE_CHECKING, Any

from greeter.loadtest.plan.units import latency, number, seconds
from greeter.loadtest.report.figure import (
    TIME,
    Chart,
    Table,
    along,
    bars,
    figure,
    grouped,
    latency_axis,
    line,
    stretched,
    time_table,
    titled,
)
from greeter.loadtest.report.series import asked_for, curve, edges, heat, slots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from greeter.loadtest.report.figure import Axis, Trace
    from greeter.loadtest.report.report import LoadReport
    from greeter.loadtest.report.series import Slot

# What is timed, and what from and to.
PHASES = {
    "connect": ("connect", "from the connect to the connection"),
    "first_byte": ("first byte", "from the connect to the first byte of the greeting"),
    "service": ("service", "from the connect to the end of the greeting"),
    "response": ("response", "from the moment the client was meant to come to the end of the greeting"),
    "failed": ("failed after", "from the connect to the failure"),
}
_TENFOLDS = [10**n for n in range(9)]
_NOTHING = "No response was timed."
_PERCENTS = (0, 50, 75, 90, 95, 99, 99.9, 99.99, 99.999, 99.9999)
_HEAT_HINT = (
    "A cell stands for the responses that took that long at that time: the stronger its colour, the more "
    "there were."
)
_HEAT_COLUMNS = 10
_FEW_POINTS = 15
_DOTTED = " Dotted: the run before."
# Lines that may lie on one another: the wider ones are below, and so are seen.
_LATENCY_WIDTHS = {"max": 4.0}
_PHASE_WIDTHS = {"first_byte": 6.0, "service": 4.0}


def charts(report: LoadReport, baseline: LoadReport | None = None) -> Iterator[Chart]:
    """Every chart of ``report``, with ``baseline`` drawn beside it. Raises ValueError for a histogram that
    is none."""
    now = _slots(report)
    then = None if baseline is None else _slots(baseline)
    yield rates(report, now, then)
    yield open_connections(now, then)
    yield failures(now, then)
    yield latencies(now, then)
    yield from heat_maps(now, then)
    yield percentiles(report, baseline)


def _slots(report: LoadReport) -> list[Slot]:
    return slots(report.timeline_width_s, report.timeline, report.duration_s)


def rates(report: LoadReport, now: Sequence[Slot], then: Sequence[Slot] | None) -> Chart:
    """Connections per second: greeted and failed, as begun, and as the plan has it."""
    data = [
        bars("greeted", now, _greeted, "greeted"),
        bars("failed", now, _failed, "failed"),
        along("begun", now, _begun, "begun"),
    ]
    if asked := asked_for(report.plan):
        xs, ys = zip(*asked, strict=True)
        data.append({**line("asked for", xs, ys, "muted"), "mode": "lines", "hoverinfo": "skip"})
        data[-1]["line"]["dash"] = "dash"
    if then:
        data.append(along("greeted", then, _greeted, "before", before=True))
    most = max((y for trace in data for y in trace["y"]), default=0)
    return Chart(
        "rates",
        "Connections per second",
        "Greeted and failed count when a connection ends, begun when it begins.",
        f"Over {_length(now)}, {number(report.rate['greeted'] or 0)} per second were greeted on average, "
        f"{number(max(map(_greeted, now)))} at most."
        if now
        else "No connection ended.",
        figure(data, x=_time(now, then), y=_from_zero(most, "/s", "connections per second"), barmode="stack")
        if now or then
        else None,
        time_table(
            now,
            then,
            {
                "begun per second": lambda slot: number(_begun(slot)),
                "greeted per second": lambda slot: number(_greeted(slot)),
                "failed per second": lambda slot: number(_failed(slot)),
            },
        ),
    )


def open_connections(now: Sequence[Slot], then: Sequence[Slot] | None) -> Chart:
    """How many were open at once."""
    most = max(map(_open, now), default=0)
    return Chart(
        "open",
        "Open connections",
        "The most that were open at once.",
        f"Over {_length(now)}, {number(most)} were open at most." if most else "No connection was open.",
        _columns("open", now, then, _open, "open", "", "connections"),
        time_table(now, then, {"open": lambda slot: number(_open(slot))}),
    )


def failures(now: Sequence[Slot], then: Sequence[Slot] | None) -> Chart:
    """Failed connections per second."""
    most = max(map(_failed, now), default=0)
    return Chart(
        "failures",
        "Errors over time",
        "Failed connections per second, when they ended; under “Errors” is why.",
        f"Over {_length(now)}, {number(most)} per second failed at most."
        if most
        else "No connection failed.",
        _columns("failed", now, then, _failed, "failed", "/s", "failures per second"),
        time_table(now, then, {"failed per second": lambda slot: number(_failed(slot))}),
    )


def latencies(now: Sequence[Slot], then: Sequence[Slot] | None) -> Chart:
    """Percentiles of the response time along time."""
    data: list[Trace] = []
    for run, stats in ((now, ("max", "p99", "p90", "p50")), (then or (), ("p99", "p50"))):
        timed = [slot for slot in run if slot.latencies]
        for stat in stats if timed else ():
            points = stretched(timed, [slot.latencies[stat] / 1e6 for slot in timed])
            trace = line(stat, *points, stat, before=run is then, show="%{y:.3~s}s")
            data.append(grouped(trace, stat, _LATENCY_WIDTHS))
    ys = [y * 1e6 for trace in data for y in trace["y"]]

    def cell(stat: str) -> Callable[[Slot], str]:
        return lambda slot: latency(slot.latencies.get(stat))

    worst = max((slot.latencies["max"] for slot in now if slot.latencies), default=None)
    return Chart(
        "latencies",
        "Response times over time",
        "From the moment a client was meant to come to the end of its greeting, when it ended."
        + _DOTTED * bool(then),
        _NOTHING if worst is None else f"Over {_length(now)}, the slowest response took {latency(worst)}.",
        figure(data, x=_time(now, then), y=latency_axis(ys), height=340) if data else None,
        time_table(now, then, {stat: cell(stat) for stat in ("p50", "p90", "p99", "max")}),
    )


def heat_maps(now: Sequence[Slot], then: Sequence[Slot] | None) -> Iterator[Chart]:
    """Where the response times lay along time; the two runs on the same scales."""
    bounds = edges(now, then or ())
    maps = [heat(run, bounds) for run in (now, then or ())]
    most = max((count for rows in maps for row in rows for count in row), default=0)
    for suffix, title, run, rows in zip(("", "-before"), ("", ", before"), (now, then), maps, strict=True):
        if run is None:
            continue
        timed = any(map(any, rows))
        yield Chart(
            f"heat{suffix}",
            f"Heat map of response times{title}",
            "On the same scales." if suffix else _HEAT_HINT,
            f"{number(sum(map(sum, rows)))} response times over {_length(run)}." if timed else _NOTHING,
            _heat_figure(run, rows, bounds, most, _time(now, then)) if timed else None,
            _heat_table(run, rows, bounds),
        )


def _heat_figure(
    run: Sequence[Slot], rows: list[list[int]], bounds: list[int], most: int, x: Axis
) -> dict[str, Any]:
    marks = [*(mark for mark in _TENFOLDS if 2 * mark <= most), most]
    trace: Trace = {
        "type": "heatmap",
        "x": [run[0].begin, *(slot.end for slot in run)],
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
    return figure([trace], x=x, y=y, height=340, hovermode="closest")


def _heat_table(run: Sequence[Slot], rows: list[list[int]], bounds: list[int]) -> Table:
    """The heat map as numbers, with fewer columns."""
    each = max(1, ceil(len(run) / _HEAT_COLUMNS))
    begins = range(0, len(run), each)
    spans = [(run[begin], run[min(begin + each, len(run)) - 1]) for begin in begins]
    return Table(
        ("took", *(f"{number(a.begin)} to {seconds(b.end)}" for a, b in spans)),
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
    """The HDR percentile curve: how slow the slowest of ten, of a hundred, of a thousand … were."""
    data: list[Trace] = []
    rows = []
    for run in (report, baseline):
        for phase, (name, _) in PHASES.items():
            if run is None or not (points := curve(histogram := run.histogram(phase))):
                continue
            xs = [x for x, _ in points]
            trace = line(name, xs, [us / 1e6 for _, us in points], phase, before=run is baseline)
            trace["mode"] = "lines+markers" if len(xs) <= _FEW_POINTS else "lines"
            trace["customdata"] = [_percent(x) for x in xs]
            trace["hovertemplate"] = (
                f"<b>{trace['name']}</b><br>%{{customdata}} % took at most %{{y:.3~s}}s<extra></extra>"
            )
            data.append(grouped(trace, name, {PHASES[key][0]: width for key, width in _PHASE_WIDTHS.items()}))
            shown = [p for p in _PERCENTS if histogram.total >= round(100 / (100 - p))]
            cells = [latency(us) for us in histogram.percentiles(*shown, 100)]
            cells[-1:-1] = ["-"] * (len(_PERCENTS) - len(shown))
            rows.append([trace["name"], number(histogram.total), *cells])
    ys = [y * 1e6 for trace in data for y in trace["y"]]
    far = max((trace["x"][-1] for trace in data), default=10)
    marks = [mark for mark in (1, 2, *_TENFOLDS[1:], 10**9) if mark <= max(far, 10)]
    x = {
        **titled("percentile, on a log scale"),
        "type": "log",
        "tickvals": marks,
        "ticktext": [f"p{_percent(mark)}" for mark in marks],
        "range": [0, log10(max(far, 10)) + 0.05],
    }
    return Chart(
        "percentiles",
        "Percentiles",
        "Read it as: p99.9 is what 999 of 1,000 did not exceed. To the right are the slowest few; the last "
        "point is the slowest of all." + _DOTTED * (baseline is not None),
        f"Percentile curves of {', '.join(trace['name'] for trace in data)}."
        if data
        else "Nothing was timed.",
        figure(data, x=x, y=latency_axis(ys, "latency"), height=420, hovermode="closest", showlegend=True)
        if data
        else None,
        Table(("phase", "count", "min", *(f"p{p:g}" for p in _PERCENTS[1:]), "max"), rows),
    )


def _percent(x: float) -> str:
    """The percentile that one in ``x`` exceeds, with the digits that tell it from 100."""
    digits = max(0, ceil(log10(x)) - 1)
    text = f"{100 * (1 - 1 / x):.{digits}f}"
    return text.rstrip("0").rstrip(".") if digits else text


def _columns(
    name: str,
    now: Sequence[Slot],
    then: Sequence[Slot] | None,
    value: Callable[[Slot], float],
    color: str,
    unit: str,
    what: str,
) -> dict[str, Any] | None:
    """Bars and, for the older run, a line; nothing when there was never anything."""
    data = [bars(name, now, value, color)]
    if then:
        data.append(along(name, then, value, "before", before=True))
    most = max((y for trace in data for y in trace["y"]), default=0)
    return figure(data, x=_time(now, then), y=_from_zero(most, unit, what), height=260) if most else None


def _time(now: Sequence[Slot], then: Sequence[Slot] | None) -> Axis:
    """The axis of time: the same for all that is along time."""
    return {**TIME, "range": [0, max((run[-1].end for run in (now, then) if run), default=1)]}


def _from_zero(most: float, unit: str, what: str) -> Axis:
    axis: Axis = {
        "range": [0, 1.08 * most or 1],
        "ticksuffix": unit,
        "tickformat": ",~r",
        "hoverformat": ",.4~r",
    }
    if not unit and most < _FEW_POINTS:
        axis["dtick"] = max(1, round(most / 5))  # there is no half of a connection
    return {**titled(what), **axis}


def _length(run: Sequence[Slot]) -> str:
    return seconds(run[-1].end)


def _begun(slot: Slot) -> float:
    return slot.per_second("attempted")


def _greeted(slot: Slot) -> float:
    return slot.per_second("greeted")


def _failed(slot: Slot) -> float:
    return slot.per_second("failed")


def _open(slot: Slot) -> float:
    return slot.bucket.open

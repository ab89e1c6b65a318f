"""Build the figures of plotly.js that the charts need: lines, bars, axes.

Invariants:

- A figure is plain data that can be written as JSON.
- Colours are references to variables of the style sheet, such as ``var(--failed)``, which has light and dark
  values.
- Times are in seconds; plotly.js formats them as 850µs or 3.1ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log10
from typing import TYPE_CHECKING, Any

from greeter.loadtest.plan.units import latency, number, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greeter.loadtest.report.series import TimeSlice

Trace = dict[str, Any]
Axis = dict[str, Any]

MAX_MARKED_POINTS = 60  # lines with at most this many points show a marker for each
_TICKS = [step * 10**n for n in range(9) for step in (1, 2, 5)]  # in µs
BASELINE_LINE = {"dash": "dot", "width": 1.5}


def axis_title(text: str) -> Axis:
    """Return the title of an axis."""
    return {"title": {"text": text, "standoff": 8, "font": {"size": 11, "color": "var(--muted)"}}}


TIME: Axis = {**axis_title("time since the start"), "ticksuffix": " s", "hoverformat": ".4~g"}


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
    - ``figure``: the figure for plotly.js; None if there is nothing to draw.
    - ``table``: the same values as text.
    """

    id: str
    title: str
    hint: str
    summary: str
    figure: dict[str, Any] | None
    table: Table


def plotly_figure(
    data: list[Trace], *, x: Axis = TIME, y: Axis, height: int = 320, **layout: Any
) -> dict[str, Any]:
    """Return a figure for plotly.js with the common layout; ``layout`` overrides it, ``height`` is in px."""
    axis = {
        "gridcolor": "var(--grid)",
        "linecolor": "var(--line)",
        "zerolinecolor": "var(--grid)",
        "automargin": True,
    }
    return {
        "data": data,
        "layout": {
            "height": height,
            "margin": {"l": 8, "r": 18, "t": 30, "b": 8},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "system-ui, sans-serif", "size": 12, "color": "var(--ink)"},
            "hovermode": "x unified",
            "hoverlabel": {"bgcolor": "var(--card)", "bordercolor": "var(--line)"},
            "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
            "showlegend": len(data) > 1,
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "var(--muted)", "activecolor": "var(--ink)"},
            "xaxis": {**axis, **x},
            "yaxis": {**axis, **y},
            **layout,
        },
    }


def latency_axis(us: Sequence[float], what: str = "response time") -> Axis:
    """Return a logarithmic axis that covers the times ``us`` (microseconds), with at least two ticks."""
    low, high = max(1, min(us)), max(us)
    ticks = _TICKS if high < 1000 * low else _TICKS[::3]
    if sum(low <= tick <= high for tick in ticks) < 2:
        low = max(tick for tick in ticks if tick <= low)
        high = min(tick for tick in ticks if tick > high)
    return {
        **axis_title(f"{what}, on a log scale"),
        "type": "log",
        "range": [log10(low / 1e6) - 0.08, log10(high / 1e6) + 0.08],
        "tickvals": [tick / 1e6 for tick in ticks],
        "ticktext": [latency(tick) for tick in ticks],
    }


def line(
    name: str,
    xs: Sequence[float],
    ys: Sequence[float],
    color: str,
    *,
    before: bool = False,
    show: str = "%{y}",
) -> Trace:
    """Return a line, with markers if it has few points.

    Args:
        name: its name in the legend.
        xs: the x values.
        ys: the y values.
        color: a variable of the style sheet, without dashes.
        before: whether the line belongs to the baseline.
        show: the format of a value in plotly.js.
    """
    return {
        "type": "scatter",
        "name": f"{name}, before" if before else name,
        "x": xs,
        "y": ys,
        "mode": "lines+markers" if len(xs) <= MAX_MARKED_POINTS else "lines",
        "line": {"color": f"var(--{color})", "width": 2, **(BASELINE_LINE if before else {})},
        "marker": {"size": 5},
        "opacity": 0.75 if before else 1,
        "hovertemplate": f"{show} {name}{', before' * before}<extra></extra>",
    }


def in_legend_group(trace: Trace, name: str, widths: dict[str, float]) -> Trace:
    """Group a line with the baseline's line of the same name, which has no legend entry of its own."""
    if trace["name"] != name:
        trace["showlegend"] = False
    elif name in widths:
        trace["line"]["width"] = widths[name]
    trace["legendgroup"] = name
    return trace


def line_over_time(
    name: str,
    run: Sequence[TimeSlice],
    value: Callable[[TimeSlice], float],
    color: str,
    *,
    before: bool = False,
) -> Trace:
    """Return a line over time."""
    return line(name, *time_points(run, [value(time_slice) for time_slice in run]), color, before=before)


def time_points(run: Sequence[TimeSlice], ys: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """Return the points of a line over time: the middle of each slice, or both ends of a single slice."""
    if len(run) == 1:
        return (run[0].begin, run[0].end), (*ys, *ys)
    return [time_slice.middle for time_slice in run], ys


def bars(name: str, run: Sequence[TimeSlice], value: Callable[[TimeSlice], float], color: str) -> Trace:
    """Return bars, one per time slice, as wide as the slice."""
    return {
        "type": "bar",
        "name": name,
        "x": [time_slice.middle for time_slice in run],
        "y": [value(time_slice) for time_slice in run],
        "width": [time_slice.span for time_slice in run],
        "marker": {"color": f"var(--{color})", "line": {"width": 0}},
        "hovertemplate": f"%{{y}} {name}<extra></extra>",
    }


def time_table(
    now: Sequence[TimeSlice], then: Sequence[TimeSlice] | None, columns: dict[str, Callable[[TimeSlice], str]]
) -> Table:
    """Return a table with a row per time slice; with a baseline, each column appears twice."""
    heads = list(columns)
    if then is not None:
        heads += [f"{name}, before" for name in columns]
    rows = []
    for index in range(max(len(now), len(then or ()))):
        here = [run[index] if index < len(run) else None for run in (now, then) if run is not None]
        named = next(time_slice for time_slice in here if time_slice)
        cells = [show(time_slice) if time_slice else "-" for time_slice in here for show in columns.values()]
        rows.append([f"{number(named.begin)} to {seconds(named.end)}", *cells])
    return Table(("time", *heads), rows)

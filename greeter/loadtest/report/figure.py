"""What plotly.js is told, in the few words that the charts need: a line, bars, an axis of times.

The law: a figure is plain data. Colours are names, ``var(--failed)``, that the page's style sheet knows,
once for light and once for dark. Times are in seconds, which plotly.js writes as 850µs or 3.1ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log10
from typing import TYPE_CHECKING, Any

from greeter.loadtest.plan.units import latency, number, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greeter.loadtest.report.series import Slot

Trace = dict[str, Any]
Axis = dict[str, Any]

FEW = 60  # points that are no more than this are marked one by one
_TICKS = [step * 10**n for n in range(9) for step in (1, 2, 5)]  # in µs
BEFORE = {"dash": "dot", "width": 1.5}


def titled(text: str) -> Axis:
    """The title of an axis: what is measured along it."""
    return {"title": {"text": text, "standoff": 8, "font": {"size": 11, "color": "var(--muted)"}}}


TIME: Axis = {**titled("time since the beginning"), "ticksuffix": " s", "hoverformat": ".4~g"}


@dataclass(frozen=True)
class Table:
    """Text in rows; the first cell of each is its heading."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Chart:
    """``hint`` says how to read it, ``summary`` in one sentence what it shows; ``figure`` is what plotly.js
    takes, and None when there is nothing to draw; ``table`` has the same figures as text."""

    id: str
    title: str
    hint: str
    summary: str
    figure: dict[str, Any] | None
    table: Table


def figure(data: list[Trace], *, x: Axis = TIME, y: Axis, height: int = 320, **layout: Any) -> dict[str, Any]:
    """A figure of ``data`` with what all of them have in common."""
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
    """A logarithmic axis for times that are all in ``us`` (microseconds), with two ticks at the least."""
    low, high = max(1, min(us)), max(us)
    ticks = _TICKS if high < 1000 * low else _TICKS[::3]
    if sum(low <= tick <= high for tick in ticks) < 2:
        low = max(tick for tick in ticks if tick <= low)
        high = min(tick for tick in ticks if tick > high)
    return {
        **titled(f"{what}, on a log scale"),
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
    """A line through points, each marked where they are few. ``before`` is drawn as the older run's,
    ``show`` is how plotly.js is to write a point."""
    return {
        "type": "scatter",
        "name": f"{name}, before" if before else name,
        "x": xs,
        "y": ys,
        "mode": "lines+markers" if len(xs) <= FEW else "lines",
        "line": {"color": f"var(--{color})", "width": 2, **(BEFORE if before else {})},
        "marker": {"size": 5},
        "opacity": 0.75 if before else 1,
        "hovertemplate": f"{show} {name}{', before' * before}<extra></extra>",
    }


def grouped(trace: Trace, name: str, widths: dict[str, float]) -> Trace:
    """A line that is shown and hidden with the older run's of the same name, which is not in the legend."""
    if trace["name"] != name:
        trace["showlegend"] = False
    elif name in widths:
        trace["line"]["width"] = widths[name]
    trace["legendgroup"] = name
    return trace


def along(
    name: str, run: Sequence[Slot], value: Callable[[Slot], float], color: str, *, before: bool = False
) -> Trace:
    """A line along time."""
    return line(name, *stretched(run, [value(slot) for slot in run]), color, before=before)


def stretched(run: Sequence[Slot], ys: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """Where the points of a line along time are: in the middle of each slot; one alone is as wide as that."""
    if len(run) == 1:
        return (run[0].begin, run[0].end), (*ys, *ys)
    return [slot.middle for slot in run], ys


def bars(name: str, run: Sequence[Slot], value: Callable[[Slot], float], color: str) -> Trace:
    """A bar for each slot, as wide as it is long."""
    return {
        "type": "bar",
        "name": name,
        "x": [slot.middle for slot in run],
        "y": [value(slot) for slot in run],
        "width": [slot.span for slot in run],
        "marker": {"color": f"var(--{color})", "line": {"width": 0}},
        "hovertemplate": f"%{{y}} {name}<extra></extra>",
    }


def time_table(
    now: Sequence[Slot], then: Sequence[Slot] | None, columns: dict[str, Callable[[Slot], str]]
) -> Table:
    """A row for each slot; with an older run, each column twice."""
    heads = list(columns)
    if then is not None:
        heads += [f"{name}, before" for name in columns]
    rows = []
    for index in range(max(len(now), len(then or ()))):
        here = [run[index] if index < len(run) else None for run in (now, then) if run is not None]
        named = next(slot for slot in here if slot)
        cells = [show(slot) if slot else "-" for slot in here for show in columns.values()]
        rows.append([f"{number(named.begin)} to {seconds(named.end)}", *cells])
    return Table(("time", *heads), rows)

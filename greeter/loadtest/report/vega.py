"""Draw figures as SVG: bars, lines and limits between two axes. Vega draws them when the page is written.

Invariants:

- The page needs no script. A readout is a text in the SVG; the style sheet shows it while the pointer is over
  its part of the chart.
- Colours are references to variables of the style sheet, such as ``var(--failed)``, which has light and dark
  values.
- A figure is a function of its arguments. Text in it is escaped by Vega.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from greeter.errors import MissingExtra

if TYPE_CHECKING:
    from collections.abc import Sequence

NEW_LINE = "␤"  # U+2424; Vega replaces control characters with spaces
WIDE, NARROW = 1000, 340  # widths of a drawing: on a screen or paper, and on a phone
_LINE = 15  # pixels, of a line of a readout; these lines are above the plot
_MARGIN = 14  # pixels at the right, for half of the last label
_LABELS = 58  # pixels for the labels at the left, so that the time axes of all charts are aligned
_PIXELS_PER_TICK = (95, 48)  # at least, along and across
_PIXELS_PER_POINT = 15  # at least, for a line to show its points
_LIMIT_PLACES = (("right", 1.0), ("left", 0.0), ("center", 0.5))  # of the labels of limits, in turn


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis from ``low`` to ``high``.

    ``ticks`` are the places of the ticks and their labels; None lets Vega choose round numbers. With
    ``whole``, these are whole numbers.
    """

    title: str
    low: float
    high: float
    log: bool = False
    whole: bool = False
    ticks: dict[int, str] | None = None


@dataclass(frozen=True)
class Bar:
    """A rectangle between two corners; a ``faint`` one is of a partial bucket."""

    x: float
    x2: float
    y: float
    y2: float
    faint: bool = False


@dataclass(frozen=True)
class Bars:
    """Rectangles of one colour, which is a variable of the style sheet, without dashes."""

    name: str
    color: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Line:
    """A line through points; a ``before`` line belongs to the baseline and is dotted."""

    name: str
    color: str
    points: Sequence[tuple[float, float]]
    before: bool = False
    dashed: bool = False
    width: float = 2


@dataclass(frozen=True)
class Limit:
    """A horizontal line with a label, above it or below."""

    name: str
    value: float
    below: bool = False


@dataclass(frozen=True)
class Readout:
    """What a chart shows while the pointer is over a part of it.

    ``text`` has one or two lines, separated by ``NEW_LINE``. Without ``y`` and ``y2``, the part is from the
    bottom of the chart to its top.
    """

    text: str
    x: float
    x2: float
    y: float | None = None
    y2: float | None = None


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What to draw; ``height`` in pixels."""

    x: Axis
    y: Axis
    marks: Sequence[Bars | Line]
    limits: Sequence[Limit] = ()
    readouts: Sequence[Readout] = field(default=(), repr=False)
    height: int = 260

    @property
    def head(self) -> int:
        """The pixels above the plot, which the height does not include."""
        return 12 + _LINE * max((1 + readout.text.count(NEW_LINE) for readout in self.readouts), default=1)

    @property
    def partial(self) -> bool:
        """Whether a bar is of a partial bucket."""
        return any(bar.faint for mark in self.marks if isinstance(mark, Bars) for bar in mark.bars)


def package() -> Any:
    """Import and return ``vl_convert``, which has Vega.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import vl_convert
    except ImportError:
        raise MissingExtra("--html", "report") from None
    return vl_convert


def draw(figure: Figure, width: int, *, readouts: bool = True) -> str:
    """Return a figure as an SVG element.

    Args:
        figure: what to draw.
        width: its width in pixels; the SVG is scaled to its container.
        readouts: whether the SVG has the readouts.
    """
    svg: str = package().vega_to_svg(specification(figure, width, readouts=readouts))
    return _page_element(svg, width, figure.height + figure.head, figure.head)


def specification(figure: Figure, width: int, *, readouts: bool = True) -> dict[str, Any]:
    """Return a figure as the JSON values of a Vega specification."""
    x, y = figure.x, figure.y
    data: list[dict[str, Any]] = []
    marks: list[dict[str, Any]] = []
    for index, mark in enumerate(figure.marks):
        values, found = _bars(mark) if isinstance(mark, Bars) else _line(mark, width)
        data.append({"name": f"mark{index}", "values": values})
        marks += [{"from": {"data": f"mark{index}"}, **each} for each in found]
    for index, limit in enumerate(figure.limits):
        marks += _limit(limit, index)
    if readouts and figure.readouts:
        data.append({"name": "readouts", "values": [asdict(readout) for readout in figure.readouts]})
        marks.append(_hits(figure.readouts[0].y is None))
    return {
        "$schema": "https://vega.github.io/schema/vega/v6.json",
        "width": width,
        "height": figure.height + figure.head,
        "padding": {"left": 0, "right": _MARGIN, "top": figure.head, "bottom": 0},
        "autosize": {"type": "fit", "contains": "padding"},
        "config": {"axis": _AXIS},
        "data": data,
        "signals": [
            {"name": f"{name}_labels", "value": {str(at): text for at, text in axis.ticks.items()}}
            for name, axis in (("x", x), ("y", y))
            if axis.ticks is not None
        ],
        "scales": [_scale("x", x, "width"), _scale("y", y, "height")],
        "axes": [
            {**_axis("x", x, width, _PIXELS_PER_TICK[0]), "orient": "bottom"},
            {**_axis("y", y, figure.height, _PIXELS_PER_TICK[1]), **_LEFT},
        ],
        "marks": [{"aria": False, **mark} for mark in marks],
    }


_LEFT = {
    "orient": "left",
    "grid": True,
    "domain": False,
    "ticks": False,
    "labelPadding": 6,
    "minExtent": _LABELS,
    "maxExtent": _LABELS,
}
_AXIS = {
    "labelFont": "sans-serif",
    "titleFont": "sans-serif",
    "labelFontSize": 12,
    "titleFontSize": 12,
    "titleFontWeight": "normal",
    "labelColor": "var(--ink)",
    "titleColor": "var(--muted)",
    "domainColor": "var(--line)",
    "tickColor": "var(--line)",
    "gridColor": "var(--grid)",
    "labelOverlap": "greedy",
    "labelSeparation": 8,
    "labelFlush": False,
    "titlePadding": 6,
}


def _scale(name: str, axis: Axis, length: str) -> dict[str, Any]:
    kind = {"type": "log"} if axis.log else {"type": "linear", "zero": False}
    return {
        "name": name,
        "domain": [axis.low, axis.high],
        "nice": False,
        "clamp": True,
        "range": length,
        **kind,
    }


def _axis(name: str, axis: Axis, length: int, pixels: int) -> dict[str, Any]:
    made: dict[str, Any] = {"scale": name, "title": axis.title, "aria": False}
    if axis.ticks is None:
        made |= {"tickCount": max(2, length // pixels), "format": ",~r"}
        return made | {"tickMinStep": 1} if axis.whole else made
    text = {"signal": f"{name}_labels[datum.value]"}
    return made | {"values": list(axis.ticks), "encode": {"labels": {"update": {"text": text}}}}


def _at(scale: str, name: str) -> dict[str, str]:
    return {"scale": scale, "field": name}


def _bars(mark: Bars) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the data of bars, and their mark."""
    values = [
        {"x": bar.x, "x2": bar.x2, "y": bar.y, "y2": bar.y2, "opacity": 0.45 if bar.faint else 1}
        for bar in mark.bars
    ]
    corners = {name: _at(name[0], name) for name in ("x", "x2", "y", "y2")}
    look = {"fill": {"value": f"var(--{mark.color})"}, "fillOpacity": {"field": "opacity"}}
    return values, [{"type": "rect", "encode": {"enter": {**corners, **look}}}]


def _line(mark: Line, pixels: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the data of a line, and its marks."""
    place, color = {"x": _at("x", "x"), "y": _at("y", "y")}, {"value": f"var(--{mark.color})"}
    look = {
        "stroke": color,
        "strokeWidth": {"value": 1.6 if mark.before else mark.width},
        "strokeDash": {"value": [2, 3] if mark.before else [7, 4] if mark.dashed else []},
    }
    marks: list[dict[str, Any]] = [{"type": "line", "encode": {"enter": {**place, **look}}}]
    if len(mark.points) * _PIXELS_PER_POINT <= pixels and not (mark.before or mark.dashed):
        point = {"fill": color, "size": {"value": 18}}
        marks.append({"type": "symbol", "encode": {"enter": {**place, **point}}})
    return [{"x": x, "y": y} for x, y in mark.points], marks


def _limit(limit: Limit, index: int) -> list[dict[str, Any]]:
    align, part = _LIMIT_PLACES[index % len(_LIMIT_PLACES)]
    color = {"value": "var(--limit)"}
    y = {"scale": "y", "value": limit.value}
    ends = {"x": {"value": 0}, "x2": {"signal": "width"}, "y": y}
    dash = {"strokeDash": {"value": [8, 3, 2, 3]}, "strokeWidth": {"value": 1.4}}
    where = {"x": {"signal": f"{part} * width"}, "y": {**y, "offset": 14 if limit.below else -4}}
    text = {"text": {"value": limit.name}, "align": {"value": align}, "fontSize": {"value": 12}}
    return [
        {"type": "rule", "encode": {"enter": {**ends, **dash, "stroke": color}}},
        {"type": "text", "encode": {"enter": {**where, **text, "fill": color}}},
    ]


def _hits(whole: bool) -> dict[str, Any]:
    """Return the mark of the readouts: rectangles; if ``whole``, from the bottom of the chart to its top."""
    y = {"y": {"value": 0}, "y2": {"signal": "height"}} if whole else {n: _at("y", n) for n in ("y", "y2")}
    look = {"fill": {"value": "var(--hit)"}, "description": {"field": "text"}}
    enter = {"x": _at("x", "x"), "x2": _at("x", "x2"), **y, **look}
    return {"type": "rect", "aria": True, "from": {"data": "readouts"}, "encode": {"enter": enter}}


# -- from Vega's SVG to an element of the page

_READOUT = re.compile(r'<path aria-label="([^"]*)" d="([^"]*)" fill="var\(--hit\)"/>')
_TAG = re.compile(r"<[^>]*>")  # attributes have no ">", which Vega escapes
_PATH = re.compile(r' d="[^"]*"')
_DECIMALS = re.compile(r"(\.\d)\d+")
_UNUSED = re.compile(r' (?:role|aria-roledescription|aria-hidden|pointer-events|font-family|class)="[^"]*"')


def _page_element(svg: str, width: int, height: int, head: int) -> str:
    """Return Vega's SVG without what the page does not need, and with its readouts as elements."""

    def readout(match: re.Match[str]) -> str:
        text, path = match.groups()
        lines = "".join(
            f'<text y="{_LINE * (index + 1) - 3 - head}">{line}</text>'
            for index, line in enumerate(text.split(NEW_LINE))
        )
        return f'<g class="hit"><path d="{path}"/>{lines}</g>'

    _, _, inner = svg.partition(">")
    inner = _READOUT.sub(readout, _TAG.sub(_short_tag, inner))
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{inner}'


def _short_tag(tag: re.Match[str]) -> str:
    """Return a tag without attributes that the page does not need, and with one decimal in paths."""
    return _PATH.sub(lambda path: _DECIMALS.sub(r"\1", path[0]), _UNUSED.sub("", tag[0]))

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from greeter.loadtest.report.chart_parts import latency_axis
from greeter.loadtest.report.vega import (
    NARROW,
    NEW_LINE,
    WIDE,
    Axis,
    Bar,
    Bars,
    Figure,
    Limit,
    Line,
    Readout,
    draw,
)

HOSTILE = '</text></svg><script>hacked = 1</script>"\' & role="x" d="1.2345"'
X = Axis(title="seconds", low=0, high=10)
Y = Axis(title="ms", low=1, high=1000, log=True, ticks={1: "1 ms", 10: "10 ms", 100: "100 ms"})


def figure(**changes: Any) -> Figure:
    values: dict[str, Any] = {
        "x": X,
        "y": Y,
        "marks": [
            Bars("bars", "open", [Bar(0, 5, 1, 10), Bar(5, 8, 1, 20, faint=True)]),
            Line("line", "p99", [(x, 1 + x) for x in range(11)]),
        ],
    }
    return Figure(**(values | changes))


def drawn(made: Figure, width: int = WIDE, *, readouts: bool = True) -> ElementTree.Element:
    return ElementTree.fromstring(draw(made, width, readouts=readouts))


def texts(svg: ElementTree.Element) -> list[str]:
    return ["".join(element.itertext()) for element in svg.iter() if element.tag.endswith("}text")]


def test_text_is_escaped() -> None:
    made = figure(
        x=Axis(title=HOSTILE, low=0, high=10),
        limits=[Limit(HOSTILE, 50)],
        readouts=[Readout(HOSTILE, 0, 5)],
    )
    svg = drawn(made)
    assert texts(svg).count(HOSTILE) == 3, "as it is, in the title, the label and the readout"
    assert {element.tag.rpartition("}")[2] for element in svg.iter()} <= {
        "svg",
        "g",
        "path",
        "line",
        "text",
        "rect",
    }


@pytest.mark.parametrize("low", [1, 1000, 1_000_000])
def test_every_tick_has_its_label(low: int) -> None:
    axis = latency_axis([low, 49 * low])
    assert axis.ticks is not None
    shown = texts(drawn(figure(y=axis, marks=[Line("line", "p99", [(0, low), (10, 49 * low)])])))
    assert len(axis.ticks) == 6
    assert set(axis.ticks.values()) <= set(shown)


def test_a_drawing_refers_to_nothing_outside_and_has_no_id() -> None:
    """Several drawings are in one page, so an id would be there twice."""
    svg = draw(figure(limits=[Limit("limit", 50)], readouts=[Readout("a", 0, 5)]), WIDE)
    assert not re.search(r"\bid=|href|url\(|<style|<script|\bon\w+=", svg)
    assert "var(--open)" in svg
    assert "var(--p99)" in svg


def test_a_readout_has_the_place_and_the_lines_of_its_text() -> None:
    made = figure(readouts=[Readout(f"now{NEW_LINE}before", 0, 5), Readout("now", 5, 10, 10, 100)])
    first, second = (element for element in drawn(made).iter() if element.get("class") == "hit")
    assert texts(first) == ["now", "before"]
    assert texts(second) == ["now"]
    ys = [float(element.get("y", "nan")) for element in first if element.tag.endswith("}text")]
    assert -made.head < ys[0] < ys[1] < 0, "above the plot, one below the other"
    assert [element for element in drawn(made, readouts=False).iter() if element.get("class") == "hit"] == []


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_a_drawing_is_scaled_to_its_container(width: int) -> None:
    svg = drawn(figure(), width)
    assert svg.get("viewBox") == f"0 0 {width} {figure().height + figure().head}"
    assert svg.get("width") is None


def test_points_are_marked_where_there_is_room() -> None:
    def marks(width: int) -> int:
        return sum(element.get("fill") == "var(--p99)" for element in drawn(figure(), width).iter())

    many = figure(marks=[Line("line", "p99", [(x / 10, 1 + x) for x in range(100)])])
    assert marks(WIDE) == marks(NARROW) == 11
    assert sum(element.get("fill") == "var(--p99)" for element in drawn(many).iter()) == 0


def test_a_partial_bar_is_fainter() -> None:
    assert figure().partial
    opacities = {element.get("fill-opacity") for element in drawn(figure()).iter()}
    assert "0.45" in opacities
    assert len(opacities) > 1

"""The figures and tables of the charts. test_browser.py checks that they are drawn."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from importlib.resources import files
from math import log10
from typing import TYPE_CHECKING, Any

import pytest

from greeter.loadtest import LoadPlan, LoadReport, Stage
from greeter.loadtest.metrics.run_metrics import RunMetrics
from greeter.loadtest.metrics.timeline import Interval, Timeline
from greeter.loadtest.plan.outcome import GREETED
from greeter.loadtest.report.charts import charts
from greeter.loadtest.report.plotly import latency_axis
from tests.loadtest.report.test_report import metrics, report

if TYPE_CHECKING:
    from collections.abc import Callable

    from greeter.loadtest.report.plotly import Chart

PER_SECOND = 10
IDS = ["rates", "open", "failures", "latencies", "heat", "percentiles"]


def long_run(length: int, *, slower: float = 1.0, seed: int = 1) -> LoadReport:
    """A run of ``length`` seconds with varying, growing latencies and occasional errors."""
    rng, m = random.Random(seed), RunMetrics(timeline=Timeline(1.0))
    for second in range(length):
        failed = second % 17 == 3
        interval = Interval(float(second), PER_SECOND, PER_SECOND - failed, int(failed), second % 7 + 1)
        for k in range(PER_SECOND):
            latency = rng.lognormvariate(-6, 0.6) * slower * (1 + second / length) + (k == second % 90) / 5
            m.connect.record(latency / 20)
            m.lag.record(0.0001)
            if k or not failed:
                for histogram in (m.first_byte, m.service, m.response, interval.response):
                    histogram.record(latency)
            else:
                m.failed.record(latency)
        m.outcomes[GREETED] += interval.greeted
        m.outcomes["reset"] += interval.failed
        m.timeline.add(interval)
    m.elapsed, m.scheduled = length + 0.004, float(length)
    m.cpu_percent, m.peak_open = [41.5, 39.0], 7
    return report(m, LoadPlan(rate=PER_SECOND, duration=float(length), workers=2))


def by_id(run: LoadReport, baseline: LoadReport | None = None) -> dict[str, Chart]:
    return {chart.id: chart for chart in charts(run, baseline)}


def traces(chart: Chart) -> dict[str, dict[str, Any]]:
    assert chart.figure is not None
    return {trace.get("name", "heat"): trace for trace in chart.figure["data"]}


RUNS: dict[str, Callable[[], LoadReport]] = {
    "a second": report,
    "a minute": lambda: long_run(60),
    "ten minutes": lambda: long_run(600),
    "all failed": lambda: report(metrics(0, 0, 3)),
    "nothing at all": lambda: report(RunMetrics()),
    "closed": lambda: report(plan=LoadPlan(connections=7)),
}


@cache
def named(run: str) -> LoadReport:
    """Return a run, made on first use."""
    return RUNS[run]()


PAIRS = pytest.mark.parametrize(
    ("name", "baseline"),
    [
        *((name, None) for name in RUNS),
        ("a second", "a minute"),
        ("a minute", "all failed"),
        ("all failed", "a second"),
        ("nothing at all", "a minute"),
        ("closed", "nothing at all"),
    ],
)


@PAIRS
def test_plotly_accepts_every_figure(name: str, baseline: str | None) -> None:
    from plotly.graph_objects import Figure  # type: ignore[import-untyped]  # the package has no types

    for chart in charts(named(name), None if baseline is None else named(baseline)):
        assert chart.summary.endswith(".")
        if chart.figure is not None:
            Figure(chart.figure)  # raises ValueError for an unknown property
            json.dumps(chart.figure, allow_nan=False)
            assert chart.table.rows
            assert {len(row) for row in chart.table.rows} == {len(chart.table.columns)}


def test_a_run_has_every_chart() -> None:
    found = by_id(named("a minute"))
    assert list(found) == IDS
    assert all(chart.figure for chart in found.values())


def test_the_style_sheet_defines_every_colour() -> None:
    colours = set()
    for chart in charts(named("a minute"), named("a second")):
        colours |= set(re.findall(r"var\((--[^)]*)\)", json.dumps(chart.figure)))
    css = files("greeter.loadtest").joinpath("page", "report.css").read_text()
    light, dark = css.split("@media (prefers-color-scheme: dark)")
    assert len(colours) > 20
    for name in colours:
        assert f"{name}:" in light
        assert f"{name}:" in dark.split("@media print")[0]


def test_rates_are_per_second() -> None:
    found = traces(by_id(named("a second"))["rates"])
    assert found["greeted"]["y"] == [98]
    assert found["failed"]["y"] == [2]
    assert found["begun"]["y"] == (100, 100), "a line as wide as the only bucket"
    assert found["begun"]["x"] == (0, 1)
    assert (found["target"]["x"], found["target"]["y"]) == ((0, 1), (100, 100))


def test_the_planned_rate() -> None:
    stages = LoadPlan(rate=10, stages=[Stage(1, 30), Stage(2, 30), Stage(0, 5)])
    found = traces(by_id(report(plan=stages))["rates"])["target"]
    assert (found["x"], found["y"]) == ((0, 1, 3, 3), (10, 30, 30, 5))
    counted = traces(by_id(report(plan=LoadPlan(rate=10, count=25)))["rates"])["target"]
    assert counted["x"] == (0, 2.5)
    sooner = traces(by_id(report(plan=LoadPlan(rate=10, count=25, duration=60)))["rates"])["target"]
    assert sooner["x"] == (0, 2.5), "the count is reached first"
    ramp = LoadPlan(stages=[Stage(2, 10), Stage(10, 20)], count=25)
    found = traces(by_id(report(plan=ramp))["rates"])["target"]
    assert found["x"] == pytest.approx((0, 2, 3.402), abs=0.001)
    assert found["y"] == pytest.approx((0, 10, 11.402), abs=0.001)
    assert "target" not in traces(by_id(named("closed"))["rates"])


def test_latencies_are_in_seconds() -> None:
    found = by_id(named("a second"))
    assert traces(found["latencies"])["p99"]["y"] == (0.003007, 0.003007)
    curve = traces(found["percentiles"])
    assert set(curve["response"]["y"]) == {0.003001}
    assert curve["response"]["customdata"][20:21] == ["90"]
    assert curve["failed after"]["customdata"][-1] == "75"
    assert found["percentiles"].table.rows[0][:4] == ["connect", "99", "3 ms", "3 ms"]
    assert found["percentiles"].table.rows[0][-2:] == ["-", "3 ms"], "no p99.9999 of 99"


@pytest.mark.parametrize("us", [[3000.0], [2.0], [1.0, 1.4], [59e6, 60e6], [1500.0, 1600.0], [3.0, 40e6]])
def test_an_axis_of_times_has_ticks(us: list[float]) -> None:
    """At least two ticks are visible, however close the times, and the title names the log scale."""
    axis = latency_axis(us)
    low, high = axis["range"]
    assert low <= log10(min(us) / 1e6) <= log10(max(us) / 1e6) <= high
    assert sum(low <= log10(tick) <= high for tick in axis["tickvals"]) >= 2
    assert "log scale" in axis["title"]["text"]


def test_every_axis_has_a_title() -> None:
    for chart in charts(named("a minute"), named("a second")):
        assert chart.figure is not None
        for axis in ("xaxis", "yaxis"):
            assert chart.figure["layout"][axis]["title"]["text"], (chart.id, axis)


def test_percentiles_have_digits_that_distinguish_them_from_100() -> None:
    found = traces(by_id(named("ten minutes"))["percentiles"])["connect"]
    assert "99.9" in found["customdata"]
    assert "99.99" in found["customdata"]
    assert "100" not in found["customdata"]
    axis = by_id(named("ten minutes"))["percentiles"].figure
    assert axis is not None
    assert axis["layout"]["xaxis"]["ticktext"] == ["p0", "p50", "p90", "p99", "p99.9", "p99.99"]


def test_the_heat_map_has_every_response() -> None:
    chart = by_id(named("a minute"))["heat"]
    heat = traces(chart)["heat"]
    count = named("a minute").latency_us["response"]["count"]
    assert sum(map(sum, heat["customdata"])) == count
    assert (len(heat["x"]), len(heat["y"])) == (61, len(heat["z"]) + 1)
    for numbers, depths in zip(heat["customdata"], heat["z"], strict=True):
        assert [depth is None for depth in depths] == [number == 0 for number in numbers]
    cells = [int(cell) for row in chart.table.rows for cell in row[1:]]
    assert sum(cells) == count
    assert len(chart.table.columns) == 11


def test_a_baseline_is_drawn_into_the_charts() -> None:
    old = long_run(30, slower=2, seed=2)
    found = by_id(named("a minute"), old)
    assert list(found) == [*IDS[:5], "heat-before", "percentiles"]
    for name, trace in (
        ("rates", "greeted, before"),
        ("open", "open, before"),
        ("failures", "failed, before"),
        ("latencies", "p99, before"),
        ("percentiles", "response, before"),
    ):
        assert trace in traces(found[name])
    now, before = traces(found["heat"])["heat"], traces(found["heat-before"])["heat"]
    assert [now[key] for key in ("y", "zmin", "zmax")] == [before[key] for key in ("y", "zmin", "zmax")]
    axes = [found[name].figure for name in ("rates", "open", "latencies", "heat", "heat-before")]
    assert {str(figure and figure["layout"]["xaxis"]["range"]) for figure in axes} == {"[0, 60.0]"}
    rows = found["rates"].table.rows
    assert len(rows) == 60
    assert rows[59][0] == "59 to 60 s"
    assert rows[59][4:] == ["-", "-", "-"], "the baseline was shorter"
    assert rows[29][4] == "10"


def test_a_chart_without_data_has_no_figure() -> None:
    found = by_id(named("all failed"))
    assert [name for name, chart in found.items() if chart.figure is None] == ["latencies", "heat"]
    assert found["heat"].summary == "No response was timed."
    flawless = by_id(report(metrics(3, 0, 0)))
    assert [name for name, chart in flawless.items() if chart.figure is None] == ["failures"]
    assert flawless["failures"].summary == "No connection failed."


def test_the_size_of_charts_is_bounded() -> None:
    def size(run: LoadReport) -> int:
        return sum(len(json.dumps([chart.figure, chart.table.rows])) for chart in charts(run))

    hour = long_run(3600)
    assert len(hour.timeline) == 113
    assert size(hour) < 1.2 * size(named("ten minutes"))


def test_an_invalid_histogram_raises() -> None:
    run = report()
    run.histograms["service"] = "HISTnonsense"
    with pytest.raises(ValueError, match="not an HdrHistogram encoding"):
        list(charts(run))

"""The figures and tables of the charts. test_browser.py checks that they are drawn."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from greeter.loadtest import LoadPlan, LoadReport, Stage, Threshold
from greeter.loadtest.metrics.run_metrics import RunMetrics
from greeter.loadtest.metrics.timeline import Interval, Timeline
from greeter.loadtest.plan.outcome import GREETED
from greeter.loadtest.report.chart_parts import latency_axis
from greeter.loadtest.report.charts import charts
from greeter.loadtest.report.heatmap import heat_steps
from greeter.loadtest.report.percentile_chart import equal_metrics
from greeter.loadtest.report.vega import NEW_LINE, WIDE, Bar, Bars, Limit, Line, draw
from tests.loadtest.report.test_report import metrics, report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greeter.loadtest.report.chart_parts import Chart
    from greeter.loadtest.report.vega import Figure

PER_SECOND = 10
IDS = ["percentiles", "latencies", "heat", "rates", "open", "failures"]


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


def figure(chart: Chart) -> Figure:
    assert chart.figure is not None
    return chart.figure


def lines(chart: Chart) -> dict[str, Sequence[tuple[float, float]]]:
    return {mark.name: mark.points for mark in figure(chart).marks if isinstance(mark, Line)}


def bars(chart: Chart) -> dict[str, Sequence[Bar]]:
    return {mark.name: mark.bars for mark in figure(chart).marks if isinstance(mark, Bars)}


def with_thresholds(run: LoadReport, *texts: str) -> LoadReport:
    values = run.to_dict()
    return replace(run, thresholds=[Threshold.parse(text).check(values, lambda *_: None) for text in texts])


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
@pytest.mark.thorough
def test_vega_draws_every_figure(name: str, baseline: str | None) -> None:
    for chart in charts(named(name), None if baseline is None else named(baseline)):
        assert chart.summary.endswith(".")
        if chart.figure is not None:
            svg = ElementTree.fromstring(draw(chart.figure, WIDE))
            assert {"path", "text"} <= {element.tag.rpartition("}")[2] for element in svg.iter()}
            hits = [element for element in svg.iter() if element.get("class") == "hit"]
            assert len(hits) == len(chart.figure.readouts) > 0
            assert chart.table.rows
            assert {len(row) for row in chart.table.rows} == {len(chart.table.columns)}


def test_a_run_has_every_chart() -> None:
    found = by_id(named("a minute"))
    assert list(found) == IDS
    assert all(chart.figure for chart in found.values())


def test_the_style_sheet_defines_every_colour() -> None:
    colours = {"--limit"}
    for chart in charts(named("a minute"), named("a second")):
        colours |= {f"--{mark.color}" for mark in figure(chart).marks}
    css = files("greeter.loadtest").joinpath("page", "report.css").read_text()
    light, dark = css.split("@media (prefers-color-scheme: dark)")
    assert len(colours) >= 20
    for name in colours:
        assert f"{name}:" in light
        assert f"{name}:" in dark.split("@media print")[0]


def test_rates_are_per_second() -> None:
    chart = by_id(named("a second"))["rates"]
    assert bars(chart) == {"greeted": [Bar(0, 1, 0, 98)], "failed": [Bar(0, 1, 98, 100)]}, "stacked"
    assert lines(chart)["begun"] == [(0, 100), (1, 100)], "a line as wide as the only bucket"
    assert lines(chart)["target"] == [(0, 100), (1, 100)]
    assert [readout.text for readout in figure(chart).readouts] == [
        "0 to 1 s: begun 100/s, greeted 98/s, failed 2/s"
    ]


def test_the_planned_rate() -> None:
    def target(plan: LoadPlan) -> Sequence[tuple[float, float]] | None:
        return lines(by_id(report(plan=plan))["rates"]).get("target")

    assert target(LoadPlan(rate=10, stages=[Stage(1, 30), Stage(2, 30), Stage(0, 5)])) == [
        (0, 10),
        (1, 30),
        (3, 30),
        (3, 5),
    ]
    assert target(LoadPlan(rate=10, count=25)) == [(0, 10), (2.5, 10)]
    sooner = target(LoadPlan(rate=10, count=25, duration=60))
    assert sooner == [(0, 10), (2.5, 10)], "the count is reached first"
    found = target(LoadPlan(stages=[Stage(2, 10), Stage(10, 20)], count=25))
    assert found is not None
    assert [x for x, _ in found] == pytest.approx((0, 2, 3.402), abs=0.001)
    assert [y for _, y in found] == pytest.approx((0, 10, 11.402), abs=0.001)
    assert target(LoadPlan(connections=7)) is None


def test_latencies_are_in_microseconds() -> None:
    found = by_id(named("a second"))
    assert lines(found["latencies"])["p99"] == [(0, 3007), (1, 3007)]
    assert list(lines(found["latencies"])) == ["max", "p99", "p95", "p90", "p50"], "the wider ones first"
    curve = lines(found["percentiles"])
    assert {us for _, us in curve["connect = service = response"]} == {3001}
    assert found["percentiles"].table.rows[0][1:4] == ["99", "3 ms", "3 ms"]
    assert found["percentiles"].table.rows[0][-2:] == ["-", "3 ms"], "no p99.9999 of 99"
    texts = [readout.text for readout in figure(found["percentiles"]).readouts]
    assert "p90: connect = service = response 3 ms, first_byte 3 ms" in texts, (
        "of those that failed, 2 are too few"
    )
    assert any(text.startswith("p75: ") and "failed 1 ms" in text for text in texts)


def test_metrics_with_equal_figures_are_drawn_once() -> None:
    assert equal_metrics(named("a second")) == [
        ["connect", "service", "response"],
        ["first_byte"],
        ["failed"],
    ]
    assert equal_metrics(named("all failed")) == [["failed"]]
    both = equal_metrics(named("a second"), named("a minute"))
    assert both == [["connect"], ["first_byte"], ["service", "response"], ["failed"]], "equal in both"


@pytest.mark.parametrize("us", [[3000.0], [2.0], [1.0, 1.4], [59e6, 60e6], [1500.0, 1600.0], [3.0, 40e6]])
def test_an_axis_of_times_has_ticks(us: list[float]) -> None:
    """At least two ticks are visible, however close the times, and the title names the log scale."""
    axis = latency_axis(us)
    assert axis.low <= min(us) <= max(us) <= axis.high
    assert axis.ticks is not None
    assert sum(axis.low <= tick <= axis.high for tick in axis.ticks) >= 2
    assert "log scale" in axis.title


def test_every_axis_has_a_title() -> None:
    for chart in charts(named("a minute"), named("a second")):
        assert figure(chart).x.title
        assert figure(chart).y.title


def test_percentiles_have_digits_that_distinguish_them_from_100() -> None:
    found = figure(by_id(named("ten minutes"))["percentiles"])
    labels = {readout.text.partition(":")[0] for readout in found.readouts}
    assert {"p99.9", "p99.99"} <= labels
    assert "p100" not in labels
    assert found.x.ticks is not None
    assert list(found.x.ticks.values()) == ["p50", "p90", "p99", "p99.9", "p99.99"]


@pytest.mark.parametrize(
    ("expr", "chart", "value", "below"),
    [
        ("response:p99<20ms", "latencies", 20e3, False),
        ("response:p99<20ms", "percentiles", 20e3, False),
        ("connect:max<=1s", "percentiles", 1e6, False),
        ("rate:achieved>=9.5", "rates", 9.5, True),
    ],
)
def test_a_threshold_is_a_line(expr: str, chart: str, value: float, below: bool) -> None:
    run = with_thresholds(named("a minute"), expr, "errors:rate<1%")
    found = figure(by_id(run)[chart])
    assert found.limits == [Limit(expr, value, below)]
    assert found.y.low < value < found.y.high, "the axis has it"
    assert figure(by_id(named("a minute"))[chart]).limits == []


def test_an_unknown_threshold_is_left_out() -> None:
    run = replace(named("a second"), thresholds=[{"expr": "response:p42~1", "passed": True}])
    assert all(not chart.figure.limits for chart in charts(run) if chart.figure)


def test_the_last_bucket_of_a_run_is_marked_as_partial() -> None:
    run = replace(long_run(10), duration_s=9.6)
    *whole, last = bars(by_id(run)["open"])["open"]
    assert not any(bar.faint for bar in whole)
    assert last.faint
    assert figure(by_id(run)["open"]).partial
    assert not figure(by_id(long_run(10))["open"]).partial
    assert by_id(run)["open"].table.rows[-1][0] == "9 to 9.6 s (partial)"


def test_the_heat_map_has_every_response() -> None:
    chart = by_id(named("a minute"))["heat"]
    count = named("a minute").latency_us["response"]["count"]
    shown = [int(text.split(" took ")[0].split()[-1]) for text in (r.text for r in figure(chart).readouts)]
    assert sum(shown) == count
    assert len(shown) == sum(map(len, bars(chart).values())), "a readout for each cell"
    cells = [int(cell) for row in chart.table.rows for cell in row[1:]]
    assert sum(cells) == count
    assert len(chart.table.columns) == 11


def test_the_colours_of_a_heat_map_cover_all_counts() -> None:
    for most in (1, 2, 3, 5, 9, 1000, 123_456_789):
        steps = heat_steps(most)
        assert steps[0][0] == 1
        assert steps[-1][1] == most
        assert len(steps) <= 5
        assert all(low <= high for low, high in steps)
        assert [low for low, _ in steps[1:]] == [high + 1 for _, high in steps[:-1]]


def test_a_baseline_is_drawn_into_the_charts() -> None:
    old = long_run(30, slower=2, seed=2)
    found = by_id(named("a minute"), old)
    assert list(found) == [*IDS[:3], "heat-before", *IDS[3:]]
    for name, line in (
        ("rates", "greeted, before"),
        ("open", "open, before"),
        ("failures", "failed, before"),
        ("latencies", "p99, before"),
        ("percentiles", "connect, before"),
    ):
        assert line in lines(found[name])
    now, before = figure(found["heat"]), figure(found["heat-before"])
    assert (now.x, now.y) == (before.x, before.y)
    assert list(bars(found["heat"])) == list(bars(found["heat-before"])), "the same colours"
    ends = {figure(found[name]).x.high for name in ("rates", "open", "latencies", "heat", "heat-before")}
    assert ends == {60.0}
    rows = found["rates"].table.rows
    assert len(rows) == 60
    assert rows[59][0] == "59 to 60 s"
    assert rows[59][4:] == ["-", "-", "-"], "the baseline was shorter"
    assert rows[29][4] == "10/s"
    texts = [readout.text for readout in figure(found["open"]).readouts]
    assert texts[0] == f"0 to 1 s: open 1{NEW_LINE}before: open 1"
    assert texts[59] == "59 to 60 s: open 4"


def test_heat_maps_of_runs_with_other_buckets_have_the_same_columns() -> None:
    old = long_run(240, seed=2)  # four times as long, so its slices are longer
    found = by_id(named("a minute"), old)
    columns = [
        {bar.x for cells in bars(found[name]).values() for bar in cells} for name in ("heat", "heat-before")
    ]
    assert columns[0] < columns[1]
    counts = [
        sum(int(cell) for row in found[name].table.rows for cell in row[1:])
        for name in ("heat", "heat-before")
    ]
    assert counts == [run.latency_us["response"]["count"] for run in (named("a minute"), old)]


def test_a_chart_without_data_has_no_figure() -> None:
    found = by_id(named("all failed"))
    assert [name for name, chart in found.items() if chart.figure is None] == ["latencies", "heat"]
    assert found["heat"].summary == "No response was timed."
    flawless = by_id(report(metrics(3, 0, 0)))
    assert [name for name, chart in flawless.items() if chart.figure is None] == ["failures"]
    assert flawless["failures"].summary == "No connection failed."


@pytest.mark.thorough
def test_the_size_of_charts_is_bounded() -> None:
    def size(run: LoadReport) -> int:
        return sum(len(repr(chart)) for chart in charts(run))

    hour = long_run(3600)
    assert len(hour.timeline) == 113
    assert size(hour) < 1.5 * size(named("ten minutes"))
    assert all(len(chart.table.rows) <= 120 for chart in charts(hour))


@pytest.mark.parametrize("name", ["connect", "service", "failed"])
def test_an_invalid_histogram_raises(name: str) -> None:
    run = report(metrics(3, 0, 0))
    run.histograms[name] = "HISTnonsense"
    with pytest.raises(ValueError, match="not an HdrHistogram encoding"):
        list(charts(run))


def test_errors_are_stacked_by_class_the_most_frequent_first() -> None:
    found = by_id(report(metrics(7, 1, 2)))["failures"]
    assert bars(found) == {"connect_refused": [Bar(0, 1, 0, 2)], "empty": [Bar(0, 1, 2, 3)]}
    assert figure(found).readouts[0].text == "0 to 1 s: failed 3/s, connect_refused 2/s, empty 1/s"
    run = report(metrics(7, 1, 2))
    errors = {f"class_{number}": 9 - number for number in range(8)}
    run = replace(run, timeline=[{**run.timeline[0], "errors": errors, "failed": sum(errors.values())}])
    names = list(bars(by_id(run)["failures"]))
    assert names == [*(f"class_{number}" for number in range(6)), "other classes"]


def test_errors_of_a_report_without_classes_over_time_are_drawn_as_one() -> None:
    m = metrics(7, 1, 2)
    m.timeline.buckets[0].errors = {}
    assert bars(by_id(report(m))["failures"]) == {"failed": [Bar(0, 1, 0, 3)]}

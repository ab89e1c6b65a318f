from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import pytest
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]  # the package has no types
from hdrh.log import HistogramLogReader  # type: ignore[import-untyped]  # the package has no types

from greeter.loadtest.metrics.run_metrics import RunMetrics
from greeter.loadtest.metrics.timeline import Interval, Timeline
from greeter.loadtest.plan.outcome import FAILURE_CLASSES, GREETED
from greeter.loadtest.plan.threshold import PHASES
from greeter.loadtest.report.export import hdr_log, timeline_csv
from greeter.loadtest.report.saved import parse_report
from tests.loadtest.report.test_report import as_written_by_0_1, metrics, report

if TYPE_CHECKING:
    from pathlib import Path

    from greeter.loadtest import LoadReport


def two_seconds() -> LoadReport:
    """A run of 1.25 s: 5 ms at first, then 80 ms."""
    m = RunMetrics(timeline=Timeline(1.0))
    for second, ms in ((0.0, 5.0), (1.0, 80.0)):
        interval = Interval(second, 10, 10)
        for _ in range(10):
            for histogram in (m.connect, m.first_byte, m.service, m.response, interval.response):
                histogram.record(ms / 1000)
        m.timeline.add(interval)
    m.outcomes[GREETED], m.elapsed, m.scheduled = 20, 1.25, 1.25
    return report(m)


def test_the_timeline_as_csv() -> None:
    rows = list(csv.reader(timeline_csv(report()).splitlines()))
    figures = ["t_s", "attempted", "greeted", "failed", "open", "p50_us", "p95_us", "p99_us", "max_us"]
    assert rows[0] == [*figures, *FAILURE_CLASSES]
    assert rows[1][:9] == ["0.0", "100", "98", "2", "5", "3007", "3007", "3007", "3007"]
    errors = dict(zip(FAILURE_CLASSES, map(int, rows[1][9:]), strict=True))
    assert {name: count for name, count in errors.items() if count} == {"empty": 1, "connect_refused": 1}
    assert len(rows) == 2


def intervals(made: LoadReport, path: Path) -> list[Any]:
    """The histograms of the log, as HdrHistogram's own reader reads them."""
    path.write_text(hdr_log(made))
    reader = HistogramLogReader(str(path), HdrHistogram(1, 60_000_000, 3))
    found = []
    while (histogram := reader.get_next_interval_histogram()) is not None:
        found.append(histogram)
    reader.input_file.close()
    assert reader.get_start_time_sec() == 1795377600.0
    return found


def span(histogram: Any) -> tuple[int, int]:
    start = 1795377600_000
    return histogram.get_start_time_stamp() - start, histogram.get_end_time_stamp() - start


@pytest.mark.parametrize("made", [report(), report(metrics(0, 0, 3))])
def test_hdrhistogram_reads_the_log(made: LoadReport, tmp_path: Path) -> None:
    read = {histogram.get_tag(): histogram for histogram in intervals(made, tmp_path / "run.hlog")}
    assert read.keys() == set(PHASES)
    for name, histogram in read.items():
        assert histogram.get_total_count() == made.latency_us[name]["count"]
        assert span(histogram) == (0, 1000)
        if histogram.get_total_count():
            assert histogram.get_value_at_percentile(99) == pytest.approx(made.latency_us[name]["p99"], 0.01)


def test_the_log_has_an_interval_of_response_times_for_each_bucket(tmp_path: Path) -> None:
    made = two_seconds()
    found = [one for one in intervals(made, tmp_path / "run.hlog") if one.get_tag() == "response"]
    assert [span(one) for one in found] == [(0, 1000), (1000, 1250)], "the run ended in the second bucket"
    assert [one.get_total_count() for one in found] == [10, 10]
    assert [one.get_max_value() for one in found] == [pytest.approx(5000, 0.01), pytest.approx(80_000, 0.01)]
    whole = HdrHistogram(1, 60_000_000, 3)
    for one in found:
        whole.add(one)
    assert whole.get_total_count() == made.latency_us["response"]["count"]


def test_a_report_of_version_0_1_is_exported(tmp_path: Path) -> None:
    old = parse_report(json.dumps(as_written_by_0_1(two_seconds())))
    assert [row[:6] for row in csv.reader(timeline_csv(old).splitlines())][1] == [
        "0.0", "10", "10", "0", "0", "5023",
    ]  # fmt: skip
    found = [one for one in intervals(old, tmp_path / "run.hlog") if one.get_tag() == "response"]
    assert [one.get_total_count() for one in found] == [10, 10]

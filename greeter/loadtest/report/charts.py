"""The charts of a report: percentiles, and latencies, rates and errors over time.

Invariant: a chart is a function of the report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from greeter.loadtest.report.heatmap import heat_maps
from greeter.loadtest.report.over_time import failures, latencies, open_connections, rates
from greeter.loadtest.report.percentile_chart import percentiles
from greeter.loadtest.report.series import time_slices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from greeter.loadtest.report.chart_parts import Chart
    from greeter.loadtest.report.report import LoadReport
    from greeter.loadtest.report.series import TimeSlice


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
    yield percentiles(report, baseline)
    yield latencies(report, now, then)
    yield from heat_maps(now, then)
    yield rates(report, now, then)
    yield open_connections(now, then)
    yield failures(now, then)


def _time_slices(report: LoadReport) -> list[TimeSlice]:
    return time_slices(report.timeline_width_s, report.timeline, report.duration_s)

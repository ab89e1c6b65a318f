"""Export a report for other programs: the timeline as CSV, the histograms as an HdrHistogram log."""

from __future__ import annotations

import csv
import io
from datetime import datetime
from typing import TYPE_CHECKING, Any

from greeter.loadtest.metrics.histogram import decode
from greeter.loadtest.plan.outcome import FAILURE_CLASSES
from greeter.loadtest.plan.threshold import PHASES

if TYPE_CHECKING:
    from greeter.loadtest.report.report import LoadReport

_COLUMNS = ("t", "attempted", "greeted", "failed", "open", "p50_us", "p95_us", "p99_us", "max_us")


def timeline_csv(report: LoadReport) -> str:
    """Return the timeline as CSV, one row per bucket; ``t_s`` in seconds, latencies in microseconds.

    After the figures, there is a column for each class of failures.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("t_s", *_COLUMNS[1:], *FAILURE_CLASSES))
    for row in report.timeline:
        errors = row.get("errors", {})
        figures = [row.get(name) for name in _COLUMNS]  # greeter 0.1 had no p95 and no maximum
        table.writerow([*figures, *(errors.get(name, 0) for name in FAILURE_CLASSES)])
    return text.getvalue()


def hdr_log(report: LoadReport) -> str:
    """Return the histograms as an HdrHistogram log (.hlog, format 1.2), with a tag for each phase.

    ``response`` has an interval for each bucket of the timeline, with two significant digits. The others have
    one interval. Values are in microseconds; the maxima in the log are in milliseconds.
    """
    start = datetime.fromisoformat(report.started_at)
    lines = [
        f"#[greeter load {report.target}; values in microseconds]",
        "#[Histogram log format version 1.2]",
        f"#[StartTime: {start.timestamp():.3f} (seconds since epoch), {report.started_at}]",
        '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"',
    ]
    for name in PHASES:
        if name != "response":
            most = report.latency_us[name]["max"] or 0
            lines.append(_interval(name, 0.0, report.duration_s, most, report.histograms[name]))
    for row in report.timeline:
        length = report.bucket_s
        if row.get("partial"):
            length = max(0.0, report.duration_s - row["t"])
        lines.append(_interval("response", row["t"], length, _max_us(row), row["histogram"]))
    return "\n".join(lines) + "\n"


def _interval(tag: str, begin: float, length: float, max_us: float, histogram: str) -> str:
    return f"Tag={tag},{begin:.3f},{length:.3f},{max_us / 1000:.3f},{histogram}"


def _max_us(row: dict[str, Any]) -> float:
    if "max_us" in row:
        return row["max_us"] or 0
    return max(decode(row["histogram"]), default=0)  # greeter 0.1 did not write it

"""The percentile curves of a report."""

from __future__ import annotations

from math import ceil, log10
from typing import TYPE_CHECKING

from greeter.loadtest.plan.units import latency, number
from greeter.loadtest.report.chart_parts import DOTTED_HINT, LIMIT_HINT, Chart, Table, latency_axis, limits_on
from greeter.loadtest.report.series import percentile_curve
from greeter.loadtest.report.vega import NEW_LINE, Axis, Figure, Line, Readout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from greeter.loadtest.report.report import LoadReport

# From where to where each metric is timed.
METRICS = {
    "connect": "from the start of the connect to the established connection",
    "first_byte": "from the start of the connect to the first byte of the greeting",
    "service": "from the start of the connect to the end of the greeting",
    "response": "from the scheduled start to the end of the greeting",
    "failed": "from the start of the connect to the failure",
}
_POWERS_OF_TEN = [10**n for n in range(1, 10)]
_PERCENTS = (0, 50, 75, 90, 95, 99, 99.9, 99.99, 99.999, 99.9999)
# Lines may coincide. The wider ones are drawn first, so that they stay visible.
_WIDTHS = {"first_byte": 6.0, "service": 4.0}


def percentiles(report: LoadReport, baseline: LoadReport | None) -> Chart:
    """The percentile curve on the logarithmic scale of HdrHistogram."""
    lines: list[Line] = []
    rows = []
    for run in (report, baseline):
        if run is None:
            continue
        histograms = {name: run.histogram(name) for name in METRICS}  # all of them, so that each is checked
        for names in equal_metrics(report, baseline):
            histogram = histograms[names[0]]
            if not (points := percentile_curve(histogram)):
                continue
            name = " = ".join(names) + ", before" * (run is baseline)
            width = _WIDTHS.get(names[0], 2)
            lines.append(Line(name, names[0], points, before=run is baseline, width=width))
            shown = [p for p in _PERCENTS if histogram.total >= round(100 / (100 - p))]
            cells = [latency(us) for us in histogram.percentiles(*shown, 100)]
            cells[-1:-1] = ["-"] * (len(_PERCENTS) - len(shown))
            rows.append([name, number(histogram.total), *cells])
    limits = limits_on(report, *METRICS)
    times = [us for line in lines for _, us in line.points]
    far = max((line.points[-1][0] for line in lines), default=10)
    marks = [mark for mark in (2, *_POWERS_OF_TEN) if mark <= max(far, 10)]
    return Chart(
        "percentiles",
        "Percentiles",
        "p99.9 is the value that 999 of 1,000 connections did not exceed. The last point is the maximum."
        + DOTTED_HINT * (baseline is not None)
        + LIMIT_HINT * bool(limits),
        f"Percentile curves of {', '.join(line.name for line in lines)}." if lines else "Nothing was timed.",
        Figure(
            x=Axis(
                title="percentile, on a log scale",
                low=1,
                high=max(far, 10) * 1.05,
                log=True,
                ticks={mark: f"p{_percent(mark)}" for mark in marks},
            ),
            y=latency_axis(times, limits, "latency"),
            marks=lines,
            limits=limits,
            readouts=_percentile_readouts(lines),
            height=300,
        )
        if lines
        else None,
        Table(("metric", "count", "min", *(f"p{p:g}" for p in _PERCENTS[1:]), "max"), rows),
    )


def equal_metrics(report: LoadReport, baseline: LoadReport | None = None) -> list[list[str]]:
    """Return the names of the metrics that were timed; those with equal figures, in both runs, together."""
    groups: list[list[str]] = []
    runs = [run.latency_us for run in (report, baseline) if run is not None]
    for name in METRICS:
        if not any(run[name]["count"] for run in runs):
            continue
        for group in groups:
            if all(run[name] == run[group[0]] for run in runs):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def _percentile_readouts(lines: Sequence[Line]) -> list[Readout]:
    xs = sorted({x for line in lines for x, _ in line.points})
    found = []
    for index, x in enumerate(xs):
        low = (xs[index - 1] * x) ** 0.5 if index else 1.0
        high = (xs[index + 1] * x) ** 0.5 if index + 1 < len(xs) else x * 1.05
        texts = []
        for before in (False, True):
            values = [
                f"{line.name.removesuffix(', before')} {latency(us)}"
                for line in lines
                if line.before is before
                for us in _first(line, x)
            ]
            if values:
                texts.append("before: " * before + ", ".join(values))
        found.append(Readout(f"p{_percent(x)}: {NEW_LINE.join(texts)}", low, high))
    return found


def _first(line: Line, x: float) -> list[float]:
    """Return the value of the first point at or after ``x``, if there is one."""
    return [us for at, us in line.points if at >= x][:1]


def _percent(x: float) -> str:
    """Return the percentile that one in ``x`` exceeds, with enough digits to distinguish it from 100."""
    digits = max(0, ceil(log10(x)) - 1)
    text = f"{100 * (1 - 1 / x):.{digits}f}"
    return text.rstrip("0").rstrip(".") if digits else text

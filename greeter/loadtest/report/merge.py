"""Reports of one load test that was made by several generators, added up to one.

The law: what is added is what was counted (histograms, classes, the timeline), and percentiles, rates and
thresholds are worked out anew from the sum, as for a run that had been one. The parts stay visible: who
contributed what, and whose generator was the limit. Parts that cannot have been one test are refused.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from greeter.errors import ConfigError
from greeter.loadtest.metrics.histogram import Histogram
from greeter.loadtest.metrics.run_metrics import COUNTS, HISTOGRAMS, RunMetrics, merged
from greeter.loadtest.metrics.timeline import Timeline
from greeter.loadtest.plan.outcome import FAILURE_CLASSES, GREETED
from greeter.loadtest.plan.plan import LoadPlan
from greeter.loadtest.plan.units import seconds
from greeter.loadtest.report.report import build, part_row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from greeter.loadtest.report.report import LoadReport

Part = tuple[str, "LoadReport"]  # what it is called, as by its file, and what it found

_ADDED = ("connections", "count", "rate", "workers")
_SHAPE = {
    "mode": "loop",
    "duration_s": "duration in seconds",
}  # what the parts must have in common to be one test

# What should be alike in all of them: else the figures are a mixture.
_ALIKE = {
    "hold_s": "held open for",
    "warmup_s": "warm-up",
    "timeout_s": "timeout",
    "connect_timeout_s": "connect timeout",
    "until": "until",
    "expect": "expect",
    "max_bytes": "max bytes",
    "tls": "tls",
}


def merge(parts: Sequence[Part]) -> LoadReport:
    """The report on all of ``parts`` together; its ``generator["parts"]`` has a row for each.

    Rates are of the whole, over the longest of the parts; the most that were open is the sum, and so the
    most that there can have been. Kernel counters are not added, because every generator on the target's
    machine reads the same ones: the largest is kept. Raises ConfigError for parts with different schedules,
    for the same run given twice and for a report that does not hold together.
    """
    if len(parts) < 2:
        raise ConfigError("there is nothing to merge: give two reports or more")
    _all_different(parts)
    first_name, first = parts[0]
    plan = _plan(parts)
    whole = build(
        plan,
        first.target,
        merged(_metrics(name, report) for name, report in parts),
        started_at=min(parts, key=lambda part: _moment(*part))[1].started_at,
        kernel=_largest([report.kernel for _, report in parts]),
        environment=first.environment,
        notes=[*dict.fromkeys(note for _, report in parts for note in report.notes), *_remarks(parts)],
    )
    generator = {
        **whole.generator,
        "saturated": whole.generator["saturated"] or any(r.generator["saturated"] for _, r in parts),
        "parts": [row for name, report in parts for row in _rows(name, report)],
    }
    return replace(whole, generator=generator)


def _all_different(parts: Sequence[Part]) -> None:
    for index, (name, report) in enumerate(parts):
        for other_name, other in parts[:index]:
            if (report.started_at, report.histograms) == (other.started_at, other.histograms):
                raise ConfigError(f"{name} and {other_name} are the same run")


def _rows(name: str, report: LoadReport) -> list[dict[str, Any]]:
    """What ``report`` contributed; of a merged one, what its parts did."""
    if report.generator.get("parts"):
        return [{**row, "name": f"{name}: {row['name']}"} for row in report.generator["parts"]]
    return [part_row(name, report)]


def _metrics(name: str, report: LoadReport) -> RunMetrics:
    """The counts that ``report`` was made of."""
    try:
        return _counted(name, report)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{name} has a histogram that cannot be read: {error}") from None


def _counted(name: str, report: LoadReport) -> RunMetrics:
    unknown = report.errors.keys() - FAILURE_CLASSES
    if unknown:
        raise ConfigError(f"{name} has errors of unknown classes: {', '.join(sorted(unknown))}")
    metrics = RunMetrics(
        reasons={outcome: dict(reasons) for outcome, reasons in report.error_reasons.items()},
        timeline=Timeline.from_rows(report.timeline_width_s, report.timeline),
        elapsed=report.duration_s,
        scheduled=report.duration_s if report.interrupted else _load_plan(name, report.plan).schedule[1],
        cpu_percent=list(report.generator["cpu_percent"]),
        interrupted=report.interrupted,
    )
    metrics.outcomes.update(report.errors)
    metrics.outcomes[GREETED] = report.connections["greeted"]
    for count in COUNTS:
        setattr(metrics, count, report.connections[count])
    for histogram in HISTOGRAMS:
        setattr(metrics, histogram, report.histogram(histogram))
    # The report has the sum alone of what was over 60 s; it is the sum that comes out again.
    metrics.response = Histogram(metrics.response.counts, report.generator["latencies_over_60_s"])
    return metrics


def _plan(parts: Sequence[Part]) -> LoadPlan:
    """The plan that the parts' plans are together."""
    first_name, first = parts[0]
    plan = dict(first.plan)
    durations = [stage["duration_s"] for stage in first.plan["stages"]]
    for name, report in parts[1:]:
        other = report.plan
        foreign = f"{name} is no part of the same test as {first_name}"
        for key, what in _SHAPE.items():
            if other[key] != plan[key]:
                raise ConfigError(f"{foreign}: its {what} is {other[key]}, not {plan[key]}")
        if [stage["duration_s"] for stage in other["stages"]] != durations:
            raise ConfigError(f"{foreign}: its stages last for other times")
        plan["stages"] = [
            {**mine, "rate": mine["rate"] + stage["rate"]}
            for mine, stage in zip(plan["stages"], other["stages"], strict=True)
        ]
        for key in _ADDED:
            if (plan[key] is None) != (other[key] is None):
                raise ConfigError(f"{foreign}: only one of them has a {key}")
            if plan[key] is not None:
                plan[key] += other[key]
        for key in ("source_ips", "thresholds"):
            plan[key] = list(dict.fromkeys([*plan[key], *other[key]]))
    return _load_plan(first_name, plan)


def _load_plan(name: str, plan: dict[str, Any]) -> LoadPlan:
    try:
        return LoadPlan.from_dict(plan)
    except KeyError as error:
        raise ConfigError(f"{name} is no whole report: its plan has no {error.args[0]}") from None


def _remarks(parts: Sequence[Part]) -> list[str]:
    """What a reader must know about figures that were added up."""
    reports = [report for _, report in parts]
    names = ", ".join(name for name, _ in parts)
    said = [f"added up from {len(parts)} reports: {names}"]
    starts = [_moment(name, report) for name, report in parts]
    apart = (max(starts) - min(starts)).total_seconds()
    if apart >= min(report.duration_s for report in reports):
        said.append(
            f"by their clocks the parts began {seconds(apart)} apart and did not all run at the same time: "
            "the rates of the whole were never reached"
        )
    elif apart:
        said.append(
            f"by their clocks the parts began {seconds(apart)} apart; the timeline begins with all of them"
        )
    said += [
        f"the generator of {name} was the limit" for name, report in parts if report.generator["saturated"]
    ]
    said += [f"{name} was interrupted" for name, report in parts if report.interrupted]
    for what, values in (
        ("targets", [report.target for report in reports]),
        ("versions of greeter", [str(report.environment["greeter"]) for report in reports]),
    ):
        if len(set(values)) > 1:
            said.append(f"the parts had different {what}: {', '.join(dict.fromkeys(values))}")
    plans = [report.plan for report in reports]
    for key, what in _ALIKE.items():
        found = dict.fromkeys(_typed(key, plan.get(key)) for plan in plans)
        if len(found) > 1:
            said.append(f"the parts had different plans, {what}: {', '.join(found)}")
    return said


def _typed(key: str, value: Any) -> str:
    """A choice of a plan, for people."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key.endswith("_s") and isinstance(value, int | float):
        return seconds(value)
    return repr(value) if key == "expect" else str(value)


def _moment(name: str, report: LoadReport) -> datetime:
    try:
        return datetime.fromisoformat(report.started_at)
    except ValueError:
        raise ConfigError(f"{name} began at {report.started_at!r}, which is no time") from None


def _largest(counters: list[dict[str, int]]) -> dict[str, int]:
    names = dict.fromkeys(name for found in counters for name in found)
    return {name: max(found.get(name, 0) for found in counters) for name in names}

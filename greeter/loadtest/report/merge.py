"""Merge the reports of several generators that made one load test.

Invariants:

- Counts are added (histograms, classes, the timeline). Percentiles, rates and thresholds are computed from
  the sum, as for a single run.
- The report lists the parts: what each contributed, and whether its generator was saturated.
- Parts that cannot belong to one test are rejected.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from greeter.errors import ConfigError
from greeter.loadtest.metrics.greeting_table import GreetingTable
from greeter.loadtest.metrics.histogram import Histogram
from greeter.loadtest.metrics.run_metrics import COUNTS, HISTOGRAMS, RunMetrics, merged
from greeter.loadtest.metrics.timeline import Timeline
from greeter.loadtest.plan.outcome import FAILURE_CLASSES, GREETED
from greeter.loadtest.plan.plan import LoadPlan
from greeter.loadtest.plan.units import seconds
from greeter.loadtest.report.report import build, combined_diagnosis, join_addresses, part_row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from greeter.loadtest.report.report import LoadReport

NamedReport = tuple[str, "LoadReport"]  # a name, such as that of the file, and the report

_SUMMED = ("connections", "count", "rate", "workers")
# Settings that must be equal in all parts.
_MUST_MATCH = {"mode": "loop", "duration_s": "duration in seconds"}
# Settings that should be equal in all parts; otherwise the figures mix different tests.
_SHOULD_MATCH = {
    "hold_s": "held open for",
    "warmup_s": "warm-up",
    "timeout_s": "timeout",
    "connect_timeout_s": "connect timeout",
    "until": "until",
    "expect": "expect",
    "max_bytes": "max bytes",
    "tls": "tls",
}


def merge(parts: Sequence[NamedReport]) -> LoadReport:
    """Merge ``parts`` into one report, with a row for each in ``generator["parts"]``.

    - Rates are totals over the duration of the longest part.
    - ``peak_open`` is the sum of the parts, an upper bound.
    - Kernel counters are not added, because all generators on the target's machine read the same ones. The
      largest value is kept.

    Args:
        parts: two or more reports with their names.

    Raises:
        ConfigError: the parts have different schedules, one is given twice, or a report is inconsistent.
    """
    if len(parts) < 2:
        raise ConfigError("nothing to merge: give two or more reports")
    _check_distinct(parts)
    first_name, first = parts[0]
    plan = _plan(parts)
    whole = build(
        plan,
        first.target,
        merged(_metrics(name, report) for name, report in parts),
        started_at=min(parts, key=lambda part: _moment(*part))[1].started_at,
        address=join_addresses(report.address for _, report in parts),
        kernel=_max_counters([report.kernel for _, report in parts]),
        environment=first.environment,
        notes=[*dict.fromkeys(note for _, report in parts for note in report.notes), *_notes(parts)],
    )
    generator = {
        **whole.generator,
        **combined_diagnosis(whole, [report.generator for _, report in parts]),
        "parts": [row for name, report in parts for row in _rows(name, report)],
    }
    return replace(whole, generator=generator)


def _check_distinct(parts: Sequence[NamedReport]) -> None:
    for index, (name, report) in enumerate(parts):
        for other_name, other in parts[:index]:
            if (report.started_at, report.histograms) == (other.started_at, other.histograms):
                raise ConfigError(f"{name} and {other_name} are the same run")


def _rows(name: str, report: LoadReport) -> list[dict[str, Any]]:
    """Return the row of ``report``; of a merged report, the rows of its parts."""
    if report.generator.get("parts"):
        return [{**row, "name": f"{name}: {row['name']}"} for row in report.generator["parts"]]
    return [part_row(name, report)]


def _metrics(name: str, report: LoadReport) -> RunMetrics:
    """Return the counts that ``report`` was computed from."""
    try:
        return _to_metrics(name, report)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{name} has a histogram that cannot be read: {error}") from None


def _to_metrics(name: str, report: LoadReport) -> RunMetrics:
    unknown = report.errors.keys() - FAILURE_CLASSES
    if unknown:
        raise ConfigError(f"{name} has errors of unknown classes: {', '.join(sorted(unknown))}")
    metrics = RunMetrics(
        reasons={outcome: dict(reasons) for outcome, reasons in report.error_reasons.items()},
        timeline=Timeline.from_rows(report.bucket_s, report.timeline),
        elapsed=report.duration_s,
        scheduled=report.duration_s if report.interrupted else _parse_plan(name, report.plan).schedule[1],
        cpu_percent=list(report.generator["cpu_percent"]),
        interrupted=report.interrupted,
        greetings=GreetingTable.from_json(report.greetings),
        stopped=report.generator.get("stopped_s", 0.0),
        unstarted_with_free_slots=report.generator.get("unstarted_with_free_slots", 0),
    )
    metrics.outcomes.update(report.errors)
    metrics.outcomes[GREETED] = report.connections["greeted"]
    for count in set(COUNTS) & report.connections.keys():
        setattr(metrics, count, report.connections[count])
    for histogram in HISTOGRAMS:
        setattr(metrics, histogram, report.histogram(histogram))
    # The report has only the total of latencies over 60 s, so one histogram carries it.
    metrics.response = Histogram(metrics.response.counts, report.generator["latencies_over_60_s"])
    return metrics


def _plan(parts: Sequence[NamedReport]) -> LoadPlan:
    """Return the plan that the parts' plans add up to."""
    first_name, first = parts[0]
    plan = dict(first.plan)
    durations = [stage["duration_s"] for stage in first.plan["stages"]]
    for name, report in parts[1:]:
        other = report.plan
        mismatch = f"{name} is not a part of the same test as {first_name}"
        for key, what in _MUST_MATCH.items():
            if other[key] != plan[key]:
                raise ConfigError(f"{mismatch}: its {what} is {other[key]}, not {plan[key]}")
        if [stage["duration_s"] for stage in other["stages"]] != durations:
            raise ConfigError(f"{mismatch}: its stages have other durations")
        plan["stages"] = [
            {**mine, "rate": mine["rate"] + stage["rate"]}
            for mine, stage in zip(plan["stages"], other["stages"], strict=True)
        ]
        for key in _SUMMED:
            if (plan[key] is None) != (other[key] is None):
                raise ConfigError(f"{mismatch}: only one of them has a {key}")
            if plan[key] is not None:
                plan[key] += other[key]
        for key in ("source_ips", "thresholds"):
            plan[key] = list(dict.fromkeys([*plan[key], *other[key]]))
    return _parse_plan(first_name, plan)


def _parse_plan(name: str, plan: dict[str, Any]) -> LoadPlan:
    try:
        return LoadPlan.from_dict(plan)
    except KeyError as error:
        raise ConfigError(f"{name} is not a complete report: its plan has no {error.args[0]}") from None


def _notes(parts: Sequence[NamedReport]) -> list[str]:
    """Return notes on how to interpret the merged figures."""
    reports = [report for _, report in parts]
    names = ", ".join(name for name, _ in parts)
    notes = [f"sum of {len(parts)} reports: {names}"]
    starts = [_moment(name, report) for name, report in parts]
    apart = (max(starts) - min(starts)).total_seconds()
    if apart >= min(report.duration_s for report in reports):
        notes.append(
            f"by their clocks, the parts started {seconds(apart)} apart and did not all run at the same "
            "time: the total rates were never reached"
        )
    elif apart:
        notes.append(
            f"by their clocks, the parts started {seconds(apart)} apart; the timeline aligns their starts"
        )
    notes += [
        f"the generator of {name} was saturated" for name, report in parts if report.generator["saturated"]
    ]
    notes += [f"{name} was interrupted" for name, report in parts if report.interrupted]
    for what, values in (
        ("targets", [report.target for report in reports]),
        ("versions of greeter", [str(report.environment["greeter"]) for report in reports]),
    ):
        if len(set(values)) > 1:
            notes.append(f"the parts had different {what}: {', '.join(dict.fromkeys(values))}")
    plans = [report.plan for report in reports]
    for key, what in _SHOULD_MATCH.items():
        found = dict.fromkeys(_setting_text(key, plan.get(key)) for plan in plans)
        if len(found) > 1:
            notes.append(f"the parts had different plans, {what}: {', '.join(found)}")
    return notes


def _setting_text(key: str, value: Any) -> str:
    """Return a setting of a plan as text."""
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
        raise ConfigError(f"{name} started at {report.started_at!r}, which is not a time") from None


def _max_counters(counters: list[dict[str, int]]) -> dict[str, int]:
    names = dict.fromkeys(name for found in counters for name in found)
    return {name: max(found.get(name, 0) for found in counters) for name in names}

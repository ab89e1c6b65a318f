"""The headline of a report and its notes: text that is derived from the report's JSON.

Invariants:

- The headline follows the precedence of the exit codes: interrupted, generator limit, missed limits,
  nothing greeted.
- A figure that describes the generator rather than the server is marked as such.
"""

from __future__ import annotations

from contextlib import suppress
from math import inf
from typing import Any

from greeter.errors import ConfigError
from greeter.loadtest.generator.kernel import COUNTERS
from greeter.loadtest.plan.threshold import Threshold
from greeter.loadtest.plan.units import latency, number, seconds

# CPU usage of a worker, in percent of one core, from which on the worker may limit the load.
BUSY_PERCENT = 90


def headline(report: dict[str, Any], max_changes: int | None = None) -> str:
    """Return the verdict as one or two sentences.

    Args:
        report: the JSON values of a report.
        max_changes: how many worse figures of a comparison to name; the others are counted. None names all.
    """
    parts = report["generator"].get("parts", ())
    lost = sum(bool(part.get("lost")) for part in parts)
    if not lost:
        return _outcome(report, max_changes)
    verb = "was" if lost == 1 else "were"
    missing = f"Part of the load is missing: {lost} of {len(parts)} workers {verb} lost."
    return f"{missing} {_outcome(report, max_changes)}"


def _outcome(report: dict[str, Any], max_changes: int | None) -> str:
    connections, rate = report["connections"], report["rate"]
    attempted, greeted = connections["attempted"], connections["greeted"]
    if report["interrupted"]:
        still_open = connections["cut_off"]
        return (
            f"Interrupted after {seconds(report['duration_s'])}. {_greeted_text(greeted, attempted)}; "
            f"{number(still_open) if still_open else 'no'} "
            f"{'connections were' if still_open > 1 else 'connection was'} still open."
        )
    if report["generator"]["saturated"]:
        return (
            f"The generator was the limit: it started {number(rate['achieved'])} of "
            f"{number(rate['target'])} connections per second, {_lateness(report)}. The figures describe the "
            "generator, not the server. Use more workers or a lower rate."
        )
    if not report["passed"]:
        return "Not passed: " + "; ".join(_missed_limits(report, max_changes)) + "."
    if not greeted:
        return f"Nothing was greeted: {_error_classes(report) or 'nothing was attempted'}."
    slowest = report["latency_us"]["response"]["max"]
    sentence = f"{_greeted_text(greeted, attempted)}, {'the slowest ' * (greeted > 1)}in {latency(slowest)}"
    return sentence + (f"; {_error_classes(report)}." if greeted < attempted else ".")


def notes(report: dict[str, Any]) -> list[str]:
    """Return what is needed to interpret the figures, one sentence per item, without capital and full stop.

    Args:
        report: the JSON values of a report.
    """
    generator, connections = report["generator"], report["connections"]
    found = list(report["notes"])
    if report["plan"]["mode"] == "closed":
        found.append("closed loop: a client connects only after an earlier one is done, which hides stalls")
        busiest = max(generator["cpu_percent"], default=0)
        if busiest >= BUSY_PERCENT:
            found.append(f"a worker used {busiest:.0f} % of a core: the generator may have been the limit")
    elif connections["unstarted"] and not generator["saturated"]:
        limit = report["plan"]["connections"]
        reason = (
            f"the limit of {number(limit)} open connections was reached"
            if connections["peak_open"] >= limit
            else "the generator was late when the schedule ended"
        )
        found.append(f"{number(connections['unstarted'])} connections were due but not started: {reason}")
    found += [
        f"{count} connects took {band.removesuffix('s')} s or slightly more, as after a SYN retransmission"
        for band, count in report["syn_retransmits"].items()
        if count
    ]
    found += [
        f"{name} +{number(count)} on this machine: {COUNTERS.get(name, 'counted by the kernel')}"
        for name, count in report["kernel"].items()
        if count
    ]
    if connections["reset_after_greeting"]:
        found.append(
            f"{number(connections['reset_after_greeting'])} connections were reset after the greeting"
        )
    if connections["closed_while_held"]:
        found.append(
            f"{number(connections['closed_while_held'])} connections were closed by the server while held"
        )
    if generator["latencies_over_60_s"]:
        found.append(f"{number(generator['latencies_over_60_s'])} latencies over 60 s are counted as 60 s")
    return found + _baseline_notes(report["baseline"] or {})


def _baseline_notes(baseline: dict[str, Any]) -> list[str]:
    """Return why the figures of the baseline may be unreliable."""
    texts = {
        "interrupted": "the baseline {} was interrupted: its figures cover only part of the run",
        "saturated": "the generator of the baseline {} was the limit: its figures describe the generator",
        "lost": "the baseline {} lacks part of its load",
    }
    return [text.format(baseline["name"]) for fact, text in texts.items() if baseline.get(fact)]


def _greeted_text(greeted: int, attempted: int) -> str:
    if not attempted:
        return "No client was greeted"
    if greeted == attempted == 1:
        return "The only client was greeted"
    if greeted == attempted:
        return f"All {number(attempted)} clients were greeted"
    return f"{number(greeted)} of {number(attempted)} clients were greeted"


def _error_classes(report: dict[str, Any]) -> str:
    """Return the counts of the error classes, the most frequent first, each with its most frequent reason."""
    texts = []
    for name, count in sorted(report["errors"].items(), key=lambda item: -item[1]):
        if count:
            reasons = report["error_reasons"].get(name, {})
            why = max(reasons, key=lambda reason: reasons[reason], default="")
            texts.append(f"{number(count)} {name}" + f" ({why})" * bool(why))
    return ", ".join(texts)


def _lateness(report: dict[str, Any]) -> str:
    generator = report["generator"]
    busiest = max(generator["cpu_percent"], default=0)
    return f"{latency(generator['lag_p99_us'])} late at p99, with {busiest:.0f} % of a core used"


def _missed_limits(report: dict[str, Any], max_changes: int | None) -> list[str]:
    missed = [
        f"{threshold['expr']} was {format_actual(threshold)}"
        for threshold in report["thresholds"]
        if not threshold["passed"]
    ]
    worse = [change for change in (report["baseline"] or {}).get("figures", ()) if change["worse"]]
    if max_changes is not None and len(worse) > max_changes:
        more = len(worse) - max_changes
        worse = sorted(worse, key=_sort_key)[:max_changes]
        return [*missed, *map(format_change, worse), f"and {more} more figures are worse"]
    return missed + [format_change(change) for change in worse]


def _sort_key(change: dict[str, Any]) -> tuple[bool, float]:
    """Sort response times first, then the largest changes."""
    percent = change["change_percent"]
    return not change["figure"].startswith("response"), -inf if percent is None else -abs(percent)


def format_actual(threshold: dict[str, Any]) -> str:
    """Return the measured value of a threshold, with enough digits to distinguish it from the limit."""
    limit = None
    with suppress(ConfigError):  # an expression from a later version
        limit = Threshold.parse(threshold["expr"]).value
    return format_value(threshold["actual"], threshold["unit"], limit)


def format_value(value: float | None, unit: str, limit: float | None = None) -> str:
    """Return a value with its unit.

    Args:
        value: the value; None reads "not measured".
        unit: its unit, such as ``%``, ``/s`` or ``ms``.
        limit: a limit in the same unit; digits are added until the text lies on the same side as ``value``.
    """
    if value is None:
        return "not measured"
    shown, places = number(value), 0
    while limit is not None and _side(float(shown.replace(",", "")), limit) != _side(value, limit):
        places += 1
        shown = f"{value:,.{places}f}"
    return shown + (unit if unit in ("%", "/s") else " " * bool(unit) + unit)


def _side(value: float, limit: float) -> int:
    return (value > limit) - (value < limit)


def format_change(change: dict[str, Any]) -> str:
    """Return one figure of a comparison, such as ``response p99 went from 3.1 ms to 4.2 ms (+35 %)``."""

    def show(value: float | None) -> str:
        if value is None:
            return "nothing"
        return latency(value) if change["unit"] == "us" else format_value(value, change["unit"])

    percent = "" if change["change_percent"] is None else f" ({change['change_percent']:+.3g} %)"
    return f"{change['figure']} went from {show(change['old'])} to {show(change['new'])}{percent}"

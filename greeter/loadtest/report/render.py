"""Render a report as text: the summary. It works for a saved report as well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greeter.loadtest.plan.outcome import FAILURE_CLASSES
from greeter.loadtest.plan.threshold import STATS
from greeter.loadtest.plan.units import latency, number, seconds
from greeter.loadtest.report import verdict

if TYPE_CHECKING:
    from greeter.loadtest.report.report import LoadReport

_COLUMN = 9


def summary(report: LoadReport) -> str:
    """Return the summary of a run; the verdict is the last line."""
    values = report.to_dict()
    parts = [
        [_title(values)],
        _totals(values),
        _latencies(values),
        _errors(values),
        _greetings(values),
        _thresholds(values),
        _comparison(values),
        _generator(values),
        [f"  - {note}" for note in verdict.notes(values)],
        [report.verdict],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _title(values: dict[str, Any]) -> str:
    plan = values["plan"]
    if plan["mode"] == "closed":
        loop = f"closed loop, {number(plan['connections'])} at a time"
    else:
        loop = f"open loop, {number(values['rate']['target'])}/s, at most {number(plan['connections'])} open"
    workers = f", {plan['workers']} workers" if plan["workers"] > 1 else ""
    hold = f", each held for {seconds(plan['hold_s'])}" if plan["hold_s"] else ""
    return f"Load test of {values['target']}: {loop}{workers}{hold}, {seconds(values['duration_s'])}"


def _totals(values: dict[str, Any]) -> list[str]:
    connections, rate = values["connections"], values["rate"]
    rates = [f"{number(rate['achieved'])}/s achieved", f"{number(rate['greeted'])}/s greeted"]
    if rate["target"] is not None:
        rates.insert(0, f"{number(rate['target'])}/s target")
    counts = [
        f"{number(connections[name])} {name}" for name in ("attempted", "greeted", "failed", "unstarted")
    ]
    return [
        f"  rate         {', '.join(rates)}",
        f"  connections  {', '.join(counts)}; {number(connections['peak_open'])} open at most",
    ]


def _latencies(values: dict[str, Any]) -> list[str]:
    table = values["latency_us"]
    rows = {"connect": "connect", "first byte": "first_byte", "total": "service"}
    if values["plan"]["mode"] == "open":
        rows |= {"total, as due": "response"}  # from the scheduled start
    if table["failed"]["count"]:
        rows |= {"failed after": "failed"}
    lines = [" " * 15 + "".join(f"{stat:>{_COLUMN}}" for stat in STATS)]
    lines += [
        f"  {label:<13}" + "".join(f"{latency(table[phase][stat]):>{_COLUMN}}" for stat in STATS)
        for label, phase in rows.items()
    ]
    return lines


def _errors(values: dict[str, Any]) -> list[str]:
    lines = []
    for name, count in values["errors"].items():
        if count:
            reasons = ", ".join(values["error_reasons"].get(name, ()))
            meaning = FAILURE_CLASSES.get(name, "") + f" ({reasons})" * bool(reasons)
            lines.append(f"  {number(count):>9} {name:<22} {meaning}")
    return lines


def _greetings(values: dict[str, Any]) -> list[str]:
    greetings = values["greetings"]
    lines = [f"  {number(row['count']):>9} × {row['text']}" for row in greetings["texts"]]
    if greetings["others"]:
        lines.append(f"  {number(greetings['others']):>9} × other greetings")
    return lines


def _thresholds(values: dict[str, Any]) -> list[str]:
    return [
        f"  {'passed' if threshold['passed'] else 'MISSED'}  {threshold['expr']:<28} "
        f"{verdict.format_actual(threshold)}"
        for threshold in values["thresholds"]
    ]


def _comparison(values: dict[str, Any]) -> list[str]:
    baseline = values["baseline"]
    if baseline is None:
        return []
    lines = [f"  compared with {baseline['name']}, tolerance {baseline['tolerance_percent']:g} %:"]
    lines += [f"  different plan: {difference}" for difference in baseline["differences"]]
    lines += [
        f"  {'WORSE' if change['worse'] else 'kept '}   {verdict.format_change(change)}"
        for change in baseline["figures"]
    ]
    return lines


def _generator(values: dict[str, Any]) -> list[str]:
    generator = values["generator"]
    cpu = ", ".join(f"{percent:.0f} %" for percent in generator["cpu_percent"])
    line = f"  generator    {cpu} of a core"
    if generator["lag_p99_us"] is not None:
        line += (
            f"; late by {latency(generator['lag_p99_us'])} at p99, {latency(generator['lag_max_us'])} at most"
        )
    return [line]

"""A run against an earlier one: what moved, by how much, and whether that is too much.

The law: a gate that cries wolf is switched off. So a percentile is compared when there are enough
latencies beyond it to speak of one (ten, in both runs), and never min, p99.99 or max, which are luck; and a
move of 2 µs is none, because either figure may be off by one. One that cannot cry is worse: a run in which
nothing was greeted is no baseline.
"""

from __future__ import annotations

from typing import Any

from greeter.errors import ConfigError
from greeter.loadtest.plan.threshold import PHASES

DEFAULT_TOLERANCE = 10.0

_STATS = {"mean": 0, "p50": 0, "p90": 100, "p99": 1000, "p99.9": 10_000}  # from so many latencies on
_NO_MOVE_US = 2
# What makes two runs two different questions.
_PLAN = ("mode", "target", "rate", "stages", "connections", "hold_s", "until", "tls", "workers")


def compare(
    new: dict[str, Any], old: dict[str, Any], tolerance: float = DEFAULT_TOLERANCE, name: str = "baseline"
) -> dict[str, Any]:
    """Compare two reports' JSON. A figure that is worse by more than ``tolerance`` percent fails.

    ``interrupted``, ``saturated`` and ``lost`` tell of the older run. Raises as ``check`` does.
    """
    check(old, name)
    # Failures have their rate; and in a closed loop the response is the service.
    passed_over = {"failed"} if new["plan"]["mode"] == "open" else {"failed", "response"}
    figures = [
        _latency(phase, stat, new["latency_us"][phase], old["latency_us"][phase], tolerance)
        for phase in PHASES
        if phase not in passed_over
        for stat, least in _STATS.items()
        if (old["latency_us"][phase]["count"] or 0) > 0
        and min(new["latency_us"][phase]["count"] or least, old["latency_us"][phase]["count"]) >= least
    ]
    for rate in ("achieved", "greeted"):
        before, now = old["rate"][rate], new["rate"][rate]
        figures.append(_move(f"rate {rate}", "/s", before, now, now < before * (1 - tolerance / 100)))
    before, now = _error_rate(old), _error_rate(new)
    if before is not None and now is not None:
        figures.append(_move("errors", "%", before, now, now > before * (1 + tolerance / 100)))
    return {
        "name": name,
        "tolerance_percent": tolerance,
        "differences": [
            f"{key.removesuffix('_s')}: {_show(old['plan'].get(key))} then, {_show(new['plan'].get(key))} now"
            for key in _PLAN
            if old["plan"].get(key) != new["plan"].get(key)
        ],
        "figures": figures,
        "interrupted": old["interrupted"],
        "saturated": old["generator"]["saturated"],
        "lost": any(part.get("lost") for part in old["generator"].get("parts", ())),
        "passed": not any(figure["worse"] for figure in figures),
    }


def check(old: dict[str, Any], name: str) -> None:
    """See that a report's JSON can be a baseline; ``name`` is what an error calls it. Raises ConfigError."""
    if not old["connections"]["greeted"]:
        raise ConfigError(f"{name} is no baseline: nothing was greeted in it")


def _latency(
    phase: str, stat: str, new: dict[str, Any], old: dict[str, Any], tolerance: float
) -> dict[str, Any]:
    before, now = old[stat], new[stat]
    worse = now is None or (now > before * (1 + tolerance / 100) and now - before > _NO_MOVE_US)
    return _move(f"{phase} {stat}", "us", before, now, worse)


def _move(figure: str, unit: str, old: float, new: float | None, worse: bool) -> dict[str, Any]:
    change = None if new is None or not old else round(100 * (new - old) / old, 3)
    return {"figure": figure, "unit": unit, "old": old, "new": new, "change_percent": change, "worse": worse}


def _show(value: Any) -> str:
    """A choice of a plan as it would be typed."""
    if value is None or value == []:
        return "none"
    if isinstance(value, list):  # of stages
        return " ".join(f"{stage['duration_s']:g}s:{stage['rate']:g}" for stage in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _error_rate(report: dict[str, Any]) -> float | None:
    attempted = report["connections"]["attempted"]
    return 100 * report["connections"]["failed"] / attempted if attempted else None

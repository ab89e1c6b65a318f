"""Compare a run with an earlier one, the baseline.

The rules avoid false alarms and comparisons that cannot fail:

- A percentile is compared only if both runs have at least ten latencies beyond it. min, p99.99 and max are
  never compared: they depend on single connections.
- A change of 2 µs or less is ignored, because each figure may be off by 1 µs.
- A run in which nothing was greeted is not a usable baseline.
"""

from __future__ import annotations

from typing import Any

from greeter.errors import ConfigError
from greeter.loadtest.plan.threshold import PHASES

DEFAULT_TOLERANCE = 10.0

_STATS = {
    "mean": 0,
    "p50": 0,
    "p90": 100,
    "p95": 200,
    "p99": 1000,
    "p99.9": 10_000,
}  # minimum count of latencies
_NOISE_US = 2
# Settings that make two runs comparable only with care; differences are listed.
_PLAN = ("mode", "target", "rate", "stages", "connections", "hold_s", "until", "tls", "workers")


def compare(
    new: dict[str, Any], old: dict[str, Any], tolerance: float = DEFAULT_TOLERANCE, name: str = "baseline"
) -> dict[str, Any]:
    """Compare the JSON values of two reports.

    Args:
        new: the run.
        old: the baseline.
        tolerance: by how many percent a figure may be worse.
        name: what the comparison calls the baseline.

    Returns:
        The ``baseline`` member of the report; ``interrupted``, ``saturated`` and ``lost`` describe the
        baseline.

    Raises:
        ConfigError: nothing was greeted in the baseline.
    """
    check_baseline(old, name)
    # Failures are compared by rate. In a closed loop, response equals service.
    skipped = {"failed"} if new["plan"]["mode"] == "open" else {"failed", "response"}
    figures = [
        _latency(phase, stat, new["latency_us"][phase], old["latency_us"][phase], tolerance)
        for phase in PHASES
        if phase not in skipped
        for stat, least in _STATS.items()
        if (old["latency_us"][phase]["count"] or 0) > 0
        and min(new["latency_us"][phase]["count"] or least, old["latency_us"][phase]["count"]) >= least
    ]
    for rate in ("achieved", "greeted"):
        before, now = old["rate"][rate], new["rate"][rate]
        figures.append(_change(f"rate {rate}", "/s", before, now, now < before * (1 - tolerance / 100)))
    before, now = _error_rate(old), _error_rate(new)
    if before is not None and now is not None:
        figures.append(_change("errors", "%", before, now, now > before * (1 + tolerance / 100)))
    return {
        "name": name,
        "tolerance_percent": tolerance,
        "differences": [
            f"{key.removesuffix('_s')}: {_setting_text(old['plan'].get(key))} then, "
            f"{_setting_text(new['plan'].get(key))} now"
            for key in _PLAN
            if old["plan"].get(key) != new["plan"].get(key)
        ],
        "figures": figures,
        "interrupted": old["interrupted"],
        "saturated": old["generator"]["saturated"],
        "lost": any(part.get("lost") for part in old["generator"].get("parts", ())),
        "passed": not any(figure["worse"] for figure in figures),
    }


def check_baseline(old: dict[str, Any], name: str) -> None:
    """Check that a report is usable as a baseline.

    Args:
        old: the JSON values of the report.
        name: what an error calls it.

    Raises:
        ConfigError: nothing was greeted.
    """
    if not old["connections"]["greeted"]:
        raise ConfigError(f"{name} is not a usable baseline: nothing was greeted in it")


def _latency(
    phase: str, stat: str, new: dict[str, Any], old: dict[str, Any], tolerance: float
) -> dict[str, Any]:
    before, now = old[stat], new[stat]
    worse = now is None or (now > before * (1 + tolerance / 100) and now - before > _NOISE_US)
    return _change(f"{phase} {stat}", "us", before, now, worse)


def _change(figure: str, unit: str, old: float, new: float | None, worse: bool) -> dict[str, Any]:
    change = None if new is None or not old else round(100 * (new - old) / old, 3)
    return {"figure": figure, "unit": unit, "old": old, "new": new, "change_percent": change, "worse": worse}


def _setting_text(value: Any) -> str:
    """Return a setting of a plan as it would be typed."""
    if value is None or value == []:
        return "none"
    if isinstance(value, list):  # stages
        return " ".join(f"{stage['duration_s']:g}s:{stage['rate']:g}" for stage in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _error_rate(report: dict[str, Any]) -> float | None:
    attempted = report["connections"]["attempted"]
    return 100 * report["connections"]["failed"] / attempted if attempted else None

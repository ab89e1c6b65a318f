"""Judge a run: whether its generator was the limit, which limits were missed, and the exit code.

The rule: a report is invalid (98) only if its generator could have changed the verdict.

Invariants:

- A late start inflates response times, but does not make a server refuse. So counts, classes of errors and
  limits on them always stand.
- A generator is *saturated* if this machine could not make the load: arrivals were not started for which
  there was a slot, or starts were late with a core used up, or ports, descriptors or memory ran out.
- A run is *disturbed* if starts were late with CPU to spare, or the generator was stopped: the machine was
  busy. That is a note, unless a limit on latencies was missed, because that may be due to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greeter.loadtest.plan.threshold import PHASES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from greeter.loadtest.metrics.run_metrics import RunMetrics
    from greeter.loadtest.plan.plan import LoadPlan

# CPU usage of a worker, in percent of one core, from which on the worker may limit the load.
BUSY_PERCENT = 90
# Seconds of a schedule below which the usage of a core says nothing.
_SHORT = 0.2
# The share of the arrivals that may be unstarted.
_UNSTARTED_SHARE = 0.01


def diagnose(plan: LoadPlan, metrics: RunMetrics) -> tuple[bool, bool]:
    """Return whether the generator was saturated, and else whether the run was disturbed."""
    late = (metrics.lag.percentiles(99)[0] or 0) / 1e6 > plan.max_lag
    saturated = metrics.outcomes["local_exhausted"] > 0
    if plan.mode == "open":
        busy = max(metrics.cpu_percent, default=0.0) >= BUSY_PERCENT and metrics.scheduled >= _SHORT
        due = metrics.attempted + metrics.cut_off + metrics.unstarted
        # A busy worker may be the reason why there was no slot.
        unstarted = metrics.unstarted if busy else metrics.unstarted_with_free_slots
        saturated = saturated or unstarted > _UNSTARTED_SHARE * due or (busy and late)
    return saturated, not saturated and (late or metrics.stopped > 0)


def exit_code(values: Mapping[str, Any]) -> int:
    """Return the exit code of a report.

    The first that applies of: 130 interrupted; 99 a limit on errors was missed; 98 the generator could have
    changed the verdict; 99 another limit was missed; 1 nothing was greeted or part of the load was lost; 0.

    Args:
        values: the JSON values of the report.
    """
    if values["interrupted"]:
        return 130
    if any(limits_errors(threshold) for threshold in missed(values)):
        return 99
    if values["generator"]["saturated"] or in_doubt(values):
        return 98
    if not values["passed"]:
        return 99
    lost = any(part.get("lost") for part in values["generator"].get("parts", ()))
    return 0 if values["connections"]["greeted"] and not lost else 1


def missed(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the thresholds that were missed."""
    return [threshold for threshold in values["thresholds"] if not threshold["passed"]]


def worse(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the comparison with the baseline that are worse."""
    return [change for change in (values["baseline"] or {}).get("figures", ()) if change["worse"]]


def limits_errors(threshold: Mapping[str, Any]) -> bool:
    """Return whether a threshold is on failures of the target."""
    expr: str = threshold["expr"]
    if expr.startswith("errors:local_exhausted"):
        return False
    return expr.startswith(("errors:", "connections:failed"))


def in_doubt(values: Mapping[str, Any]) -> bool:
    """Return whether a run was disturbed that missed a limit on latencies or its baseline."""
    if not values["generator"].get("disturbed"):
        return False
    latencies = any(threshold["expr"].startswith(PHASES) for threshold in missed(values))
    return latencies or any(change["figure"] != "errors" for change in worse(values))

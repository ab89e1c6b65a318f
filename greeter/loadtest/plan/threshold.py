"""Thresholds: limits that the figures of a run must keep, as text: ``METRIC:STAT OP VALUE``.

Invariants:

- An invalid threshold is rejected when it is parsed, not after the run.
- A threshold whose figure was not measured is missed. The exception is a limit on the latency of failures:
  it passes when there are none.
- ``local_exhausted`` is a failure of this machine, not of the target. Only errors:local_exhausted counts it.

=======================  ============================================================  =========
``connect`` …            connect, first_byte, service, response, failed:               ``20ms``
                         min, mean, max, or a percentile, as in p95 or p99.5
``errors:rate``          failed connections of those attempted                         ``0.1%``
``errors:lost``          datagrams without a reply, of those attempted                 ``0.1%``
``errors:count``         failed connections                                            ``10``
``errors:CLASS``         connections of one class, as in errors:connect_refused        ``0``
``connections:failed``   the same as errors:count                                      ``10``
``connections:``         connections that were due but not started                     ``10``
``unstarted``
``rate:achieved``        connections per second: started, or completed (closed loop)   ``950``
``rate:greeted``         greeted connections per second                                ``10k``
``rate:lost``            datagrams without a reply, per second                         ``1``
=======================  ============================================================  =========
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from greeter.core.durations import SECONDS, parse_duration
from greeter.errors import ConfigError
from greeter.loadtest.plan.outcome import FAILURE_CLASSES
from greeter.loadtest.plan.units import parse_quantity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    PercentileOf = Callable[[str, float], float | None]

PHASES = ("connect", "first_byte", "service", "response", "failed")
STATS = ("min", "mean", "p50", "p90", "p95", "p99", "p99.9", "p99.99", "max")

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_EXPRESSION = re.compile(r"\s*([\w.]+)\s*:\s*([\w.]+)\s*(<=|>=|<|>)\s*(\S+)\s*", re.ASCII)
_VALUE = re.compile(r"([0-9.]+)\s*(us|µs|ms|s|m|h)")
_PERCENTILE = re.compile(r"p([0-9]{1,2}(?:\.[0-9]{1,6})?|100(?:\.0+)?)", re.ASCII)
_MICROSECONDS = {unit: seconds * 1e6 for unit, seconds in SECONDS.items()}


@dataclass(frozen=True, slots=True)
class Threshold:
    """A limit on one figure of a report.

    ``expr`` is its text without spaces, ``op`` one of ``<``, ``<=``, ``>`` and ``>=``. ``value`` is in
    ``unit``: a unit of time, ``%``, ``/s``, or the empty string for a count.
    """

    metric: str
    stat: str
    op: str
    value: float
    unit: str
    expr: str

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Parse a threshold.

        Args:
            text: as in ``response:p99<20ms``.

        Raises:
            ConfigError: the text is not a threshold; the message has the text and the reason.
        """
        match = _EXPRESSION.fullmatch(text)
        if not match:
            raise ConfigError(
                f"threshold {text!r} is not of the form METRIC:STAT<VALUE, as in response:p99<20ms"
            )
        metric, stat, op, value = match.groups()
        known = {
            **dict.fromkeys(PHASES, STATS),
            "errors": ("rate", "count", "lost", *FAILURE_CLASSES),
            "connections": ("failed", "unstarted"),
            "rate": ("achieved", "greeted", "lost"),
        }
        if metric not in known:
            raise ConfigError(
                f"threshold {text!r}: unknown metric {metric!r}; choose from {', '.join(known)}"
            )
        if stat not in known[metric] and not (metric in PHASES and _PERCENTILE.fullmatch(stat)):
            raise ConfigError(
                f"threshold {text!r}: unknown {metric}:{stat}; choose from {', '.join(known[metric])}"
                + " or another percentile" * (metric in PHASES)
            )
        try:
            number, unit = _parse_value(metric, stat, value)
        except ConfigError as error:
            raise ConfigError(f"threshold {text!r}: {error}") from None
        return cls(metric, stat, op, number, unit, "".join(text.split()))

    def actual(self, report: Mapping[str, Any], percentile: PercentileOf) -> float | None:
        """Return the figure that is limited, in ``unit``; None if it was not measured.

        Args:
            report: the JSON of a report.
            percentile: returns a percentile of a metric in µs, for those that the report does not list.
        """
        connections, errors = report["connections"], report["errors"]
        local = errors["local_exhausted"]
        failed, attempted = connections["failed"] - local, connections["attempted"] - local
        if self.metric == "rate":
            rate: float | None = report["rate"].get(self.stat)
            return rate
        if self.metric == "errors" and self.stat == "rate":
            return 100.0 * failed / attempted if attempted else None
        if self.metric == "errors" and self.stat == "lost":
            return 100.0 * errors.get("no_reply", 0) / attempted if attempted else None
        if self.metric in ("errors", "connections"):
            counts: dict[str, float] = {
                **errors,
                "count": failed,
                "failed": failed,
                "unstarted": connections["unstarted"],
            }
            return counts[self.stat]
        row: Mapping[str, float | None] = report["latency_us"][self.metric]
        us = row[self.stat] if self.stat in row else percentile(self.metric, float(self.stat[1:]))
        return None if us is None else us / _MICROSECONDS[self.unit]

    def check(self, report: Mapping[str, Any], percentile: PercentileOf) -> dict[str, Any]:
        """Check a report.

        Args:
            report, percentile: as for ``actual``.

        Returns:
            The row of its ``thresholds``: ``expr``, ``actual``, ``unit`` and ``passed``.
        """
        actual = self.actual(report, percentile)
        passed = self.metric == "failed" if actual is None else _OPERATORS[self.op](actual, self.value)
        return {"expr": self.expr, "actual": actual, "unit": self.unit, "passed": passed}


def _parse_value(metric: str, stat: str, value: str) -> tuple[float, str]:
    """Parse ``value``, which must have the unit of the figure. Returns the number and the unit."""
    if metric == "rate":
        return parse_quantity(value.removesuffix("/s")), "/s"
    if metric == "connections" or (metric == "errors" and stat not in ("rate", "lost")):
        return parse_quantity(value), ""
    if metric == "errors":
        if not value.endswith("%"):
            raise ConfigError(f"{value!r} is not a percentage, as in 0.1%")
        return parse_quantity(value[:-1]), "%"
    match = _VALUE.fullmatch(value)
    if not match:  # seconds without a unit, or several units
        return parse_duration(value), "s"
    parse_duration(value)  # raises for a malformed number
    return float(match[1]), match[2]

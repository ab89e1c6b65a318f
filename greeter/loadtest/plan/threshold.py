"""Thresholds: limits that the figures of a run must keep, as text: ``METRIC:STAT OP VALUE``.

Invariants:

- An invalid threshold is rejected when it is parsed, not after the run.
- A threshold whose figure was not measured is missed. The exception is a limit on the latency of failures:
  it passes when there are none.

=======================  ============================================================  =========
``connect`` …            connect, first_byte, service, response, failed:               ``20ms``
                         min mean p50 p90 p99 p99.9 p99.99 max
``errors:rate``          failed connections of those attempted                         ``0.1%``
``errors:count``         failed connections                                            ``10``
``errors:CLASS``         connections of one class, as in errors:connect_refused        ``0``
``rate:achieved``        connections per second: started, or completed (closed loop)   ``950``
``rate:greeted``         greeted connections per second                                ``10k``
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

PHASES = ("connect", "first_byte", "service", "response", "failed")
STATS = ("min", "mean", "p50", "p90", "p99", "p99.9", "p99.99", "max")

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_EXPRESSION = re.compile(r"\s*([\w.]+)\s*:\s*([\w.]+)\s*(<=|>=|<|>)\s*(\S+)\s*", re.ASCII)
_VALUE = re.compile(r"([0-9.]+)\s*(us|µs|ms|s|m|h)")
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
            "errors": ("rate", "count", *FAILURE_CLASSES),
            "rate": ("achieved", "greeted"),
        }
        if metric not in known:
            raise ConfigError(
                f"threshold {text!r}: unknown metric {metric!r}; choose from {', '.join(known)}"
            )
        if stat not in known[metric]:
            raise ConfigError(
                f"threshold {text!r}: unknown {metric}:{stat}; choose from {', '.join(known[metric])}"
            )
        try:
            number, unit = _parse_value(metric, stat, value)
        except ConfigError as error:
            raise ConfigError(f"threshold {text!r}: {error}") from None
        return cls(metric, stat, op, number, unit, "".join(text.split()))

    def actual(self, report: Mapping[str, Any]) -> float | None:
        """Return the figure that is limited, in ``unit``; None if it was not measured.

        Args:
            report: the JSON of a report.
        """
        figure: float | None
        if self.metric == "rate":
            figure = report["rate"][self.stat]
        elif self.metric == "errors":
            attempted, failed = report["connections"]["attempted"], report["connections"]["failed"]
            if self.stat == "rate":
                figure = 100.0 * failed / attempted if attempted else None
            else:
                figure = failed if self.stat == "count" else report["errors"][self.stat]
        else:
            figure = report["latency_us"][self.metric][self.stat]
            figure = None if figure is None else figure / _MICROSECONDS[self.unit]
        return figure

    def check(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """Check a report.

        Args:
            report: the JSON of a report.

        Returns:
            The row of its ``thresholds``: ``expr``, ``actual``, ``unit`` and ``passed``.
        """
        actual = self.actual(report)
        passed = self.metric == "failed" if actual is None else _OPERATORS[self.op](actual, self.value)
        return {"expr": self.expr, "actual": actual, "unit": self.unit, "passed": passed}


def _parse_value(metric: str, stat: str, value: str) -> tuple[float, str]:
    """Parse ``value``, which must have the unit of the figure. Returns the number and the unit."""
    if metric == "rate":
        return parse_quantity(value.removesuffix("/s")), "/s"
    if metric == "errors" and stat != "rate":
        return parse_quantity(value), ""
    if metric == "errors":
        if not value.endswith("%"):
            raise ConfigError(f"{value!r} is not a percentage, as in 0.1%")
        return parse_quantity(value[:-1]), "%"
    match = _VALUE.fullmatch(value)
    if not match:
        raise ConfigError(f"{value!r} is not a time with a unit, as in 500us, 20ms or 1s")
    parse_duration(value)  # raises for a malformed number
    return float(match[1]), match[2]

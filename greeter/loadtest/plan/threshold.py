"""A limit that a run must keep, as one line of text: ``METRIC:STAT OP VALUE``.

The law: a threshold that means nothing is found when it is read, not after the run; and a threshold over
nothing measured is missed, except a limit on failures, of which none is the best there can be.

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

from greeter.errors import ConfigError
from greeter.loadtest.plan.outcome import FAILURE_CLASSES
from greeter.loadtest.plan.units import SECONDS, parse_duration, parse_quantity

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
    """One limit. ``value`` is in ``unit``: a unit of time, ``%``, ``/s``, or nothing for a count."""

    metric: str
    stat: str
    op: str
    value: float
    unit: str
    expr: str

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Read ``response:p99<20ms``; raises ConfigError with the text and what is wrong with it."""
        match = _EXPRESSION.fullmatch(text)
        if not match:
            raise ConfigError(f"threshold {text!r} does not read METRIC:STAT<VALUE, as in response:p99<20ms")
        metric, stat, op, value = match.groups()
        known = {
            **dict.fromkeys(PHASES, STATS),
            "errors": ("rate", "count", *FAILURE_CLASSES),
            "rate": ("achieved", "greeted"),
        }
        if metric not in known:
            raise ConfigError(
                f"threshold {text!r} has the unknown metric {metric!r}; known are {', '.join(known)}"
            )
        if stat not in known[metric]:
            raise ConfigError(
                f"threshold {text!r} has the unknown {metric}:{stat}; known are {', '.join(known[metric])}"
            )
        try:
            number, unit = _parse_value(metric, stat, value)
        except ConfigError as error:
            raise ConfigError(f"threshold {text!r}: {error}") from None
        return cls(metric, stat, op, number, unit, "".join(text.split()))

    def actual(self, report: Mapping[str, Any]) -> float | None:
        """The figure that this limit is about, in its unit, from a report's JSON; None if not measured."""
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
        """The verdict on a report's JSON, as its ``thresholds`` hold it."""
        actual = self.actual(report)
        passed = self.metric == "failed" if actual is None else _OPERATORS[self.op](actual, self.value)
        return {"expr": self.expr, "actual": actual, "unit": self.unit, "passed": passed}


def _parse_value(metric: str, stat: str, value: str) -> tuple[float, str]:
    """The number and the unit of ``value``, which must be what the figure is measured in."""
    if metric == "rate":
        return parse_quantity(value.removesuffix("/s")), "/s"
    if metric == "errors" and stat != "rate":
        return parse_quantity(value), ""
    if metric == "errors":
        if not value.endswith("%"):
            raise ConfigError(f"{value!r} is no percentage, as in 0.1%")
        return parse_quantity(value[:-1]), "%"
    match = _VALUE.fullmatch(value)
    if not match:
        raise ConfigError(f"{value!r} is no time with its unit, as in 500us, 20ms or 1s")
    parse_duration(value)  # for its opinion about the number
    return float(match[1]), match[2]

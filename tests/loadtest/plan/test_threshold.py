from __future__ import annotations

import re
from typing import Any

import pytest

from greeter.errors import ConfigError
from greeter.loadtest.plan.outcome import FAILURE_CLASSES
from greeter.loadtest.plan.threshold import PHASES, STATS, Threshold


def report(**changes: Any) -> dict[str, Any]:
    """The part of a report that thresholds read: every latency is 1 ms, 10 of 1,000 connections failed."""
    values: dict[str, Any] = {
        "connections": {"attempted": 1000, "failed": 10, "unstarted": 3},
        "errors": {**dict.fromkeys(FAILURE_CLASSES, 0), "empty": 10},
        "rate": {"achieved": 950.0, "greeted": 940.0},
        "latency_us": {phase: dict.fromkeys(STATS, 1000) for phase in PHASES},
    }
    return values | changes


def percentile(phase: str, percent: float) -> float | None:
    """1 µs per percent."""
    return percent


@pytest.mark.parametrize(
    ("expr", "actual", "unit", "passed"),
    [
        ("response:p99<20ms", 1.0, "ms", True),
        ("response:p99<1ms", 1.0, "ms", False),
        ("response:p99<=1ms", 1.0, "ms", True),
        ("connect:max<=1s", 0.001, "s", True),
        ("first_byte:p99.99 < 500us", 1000.0, "us", False),
        ("service:mean>999us", 1000.0, "us", True),
        ("failed:min>=2ms", 1.0, "ms", False),
        ("errors:rate<0.1%", 1.0, "%", False),
        ("errors:rate<=1%", 1.0, "%", True),
        ("errors:count<11", 10, "", True),
        ("errors:empty<=9", 10, "", False),
        ("errors:connect_refused<1", 0, "", True),
        ("errors:lost<1%", 0, "%", True),
        ("rate:lost<1", None, "/s", False),
        ("response:p99<0.5", 0.001, "s", True),
        ("response:p99<1m30s", 0.001, "s", True),
        ("connections:failed<=9", 10, "", False),
        ("connections:unstarted<4", 3, "", True),
        ("response:p99.5<99us", 99.5, "us", False),
        ("connect:p75<1ms", 0.075, "ms", True),
        ("service:p99.999<1s", 0.000099999, "s", True),
        ("response:p100<1ms", 0.1, "ms", True),
        ("rate:achieved>=950", 950.0, "/s", True),
        ("rate:greeted>=0.95k", 940.0, "/s", False),
        ("rate:greeted>=900/s", 940.0, "/s", True),
    ],
)
def test_a_threshold_is_checked_in_its_own_unit(expr: str, actual: float, unit: str, passed: bool) -> None:
    checked = Threshold.parse(expr).check(report(), percentile)
    assert checked == {
        "expr": expr.replace(" ", ""),
        "actual": pytest.approx(actual),
        "unit": unit,
        "passed": passed,
    }


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("stat", STATS)
def test_every_phase_and_statistic_can_be_limited(phase: str, stat: str) -> None:
    assert Threshold.parse(f"{phase}:{stat}<2ms").check(report(), percentile)["passed"]


@pytest.mark.parametrize(
    ("expr", "message"),
    [
        ("", "is not of the form METRIC:STAT<VALUE"),
        ("response p99", "is not of the form"),
        ("response:p99=20ms", "is not of the form"),
        ("latency:p99<20ms", "unknown metric 'latency'; choose from connect, "),
        ("response:p101<20ms", "unknown response:p101; choose from min, mean, p50, "),
        ("response:p<20ms", "p99.99, max or another percentile"),
        ("rate:p95<20", "unknown rate:p95; choose from achieved, greeted"),
        ("connections:peak<20", "unknown connections:peak; choose from failed, unstarted"),
        ("errors:nonsense<1", "unknown errors:nonsense; choose from rate, count, lost, connect_refused, "),
        ("rate:target>1", "unknown rate:target; choose from achieved, greeted"),
        ("response:p99<20%", "'20%' is not a duration, as in 500ms"),
        ("response:p99<1.2.3ms", "is not a duration"),
        ("errors:rate<0.1", "'0.1' is not a percentage"),
        ("errors:rate<x%", "'x' is not a number"),
        ("errors:count<1%", "'1%' is not a number"),
        ("rate:achieved>=10ms", "'10ms' is not a number"),
    ],
)
def test_an_invalid_threshold_is_rejected_when_parsed(expr: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        Threshold.parse(expr)
    assert f"threshold {expr!r}" in str(caught.value)


def test_what_this_machine_could_not_make_is_in_no_error_rate() -> None:
    exhausted = report(
        connections={"attempted": 1000, "failed": 510, "unstarted": 0},
        errors={**dict.fromkeys(FAILURE_CLASSES, 0), "empty": 10, "local_exhausted": 500},
    )
    for expr, actual in (
        ("errors:rate<3%", 2.0),
        ("errors:count<11", 10),
        ("connections:failed<11", 10),
        ("errors:local_exhausted<501", 500),
    ):
        assert Threshold.parse(expr).check(exhausted, percentile) == {
            "expr": expr,
            "actual": actual,
            "unit": "%" if "%" in expr else "",
            "passed": True,
        }
    all_of_it = report(
        connections={"attempted": 5, "failed": 5, "unstarted": 0},
        errors={**dict.fromkeys(FAILURE_CLASSES, 0), "local_exhausted": 5},
    )
    assert Threshold.parse("errors:rate<3%").check(all_of_it, percentile)["actual"] is None


def test_a_threshold_without_a_figure_is_missed_except_on_failures() -> None:
    nothing = report(
        connections={"attempted": 0, "failed": 0, "unstarted": 0},
        latency_us={phase: dict.fromkeys(STATS) for phase in PHASES},
    )
    missed = Threshold.parse("response:p99<20ms").check(nothing, percentile)
    assert (missed["actual"], missed["passed"]) == (None, False)
    assert not Threshold.parse("errors:rate<1%").check(nothing, percentile)["passed"]
    assert Threshold.parse("failed:max<1s").check(nothing, percentile)["passed"]

"""The rule of exit code 98, and the precedence of exit codes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from greeter.loadtest import LoadPlan, LoadReport, Threshold
from greeter.loadtest.metrics.run_metrics import RunMetrics
from greeter.loadtest.report.exit_code import diagnose
from greeter.loadtest.report.merge import merge
from tests.loadtest.report.test_report import lagging, metrics, report


def plan(*limits: str, **options: Any) -> LoadPlan:
    thresholds = [Threshold.parse(limit) for limit in limits]
    return LoadPlan(rate=100, duration=1.0, thresholds=thresholds, **options)


def unstarted(count: int, *, free: bool, cpu: float = 50.0) -> RunMetrics:
    m = metrics(100 - count, 0, 0)
    m.unstarted, m.cpu_percent = count, [cpu]
    m.unstarted_with_free_slots = count if free else 0
    return m


def exhausted(count: int) -> RunMetrics:
    m = metrics(100 - count, 0, 0)
    m.outcomes["local_exhausted"] = count
    m.timeline.buckets[0].attempted += count
    m.timeline.buckets[0].failed += count
    for _ in range(count):
        m.failed.record(0.001)
    return m


def stopped(seconds: float) -> RunMetrics:
    m = metrics()
    m.stopped = seconds
    return m


def short(m: RunMetrics) -> RunMetrics:
    m.scheduled = m.elapsed = 0.02
    return m


SATURATED, DISTURBED, FINE = (True, False), (False, True), (False, False)


@pytest.mark.parametrize(
    ("m", "expected"),
    [
        (lagging(0.1, 50), FINE),
        (lagging(9.9, 50), FINE),
        (lagging(10.1, 50), DISTURBED),  # late, with CPU to spare
        (lagging(10.1, 95), SATURATED),  # late, with a core used up
        (lagging(0.1, 95), FINE),  # busy, but on time
        (lagging(2.0, 95), FINE),
        (unstarted(1, free=True), FINE),  # 1 %
        (unstarted(2, free=True), SATURATED),
        (unstarted(50, free=False), FINE),  # the server held the slots
        (unstarted(50, free=False, cpu=95), SATURATED),  # or the generator did not free them
        (unstarted(1, free=False, cpu=95), FINE),
        (exhausted(1), SATURATED),
        (stopped(1.5), DISTURBED),
        (short(lagging(10.1, 99)), DISTURBED),  # the share of a core means nothing in so short a time
        (RunMetrics(), FINE),
    ],
)
def test_an_open_loop_is_saturated_if_its_load_was_not_made(
    m: RunMetrics, expected: tuple[bool, bool]
) -> None:
    assert diagnose(plan(), m) == expected


@pytest.mark.parametrize(
    ("m", "expected"),
    [
        (lagging(0.1, 99), FINE),  # a closed loop at full speed
        (exhausted(1), SATURATED),
        (stopped(1.5), DISTURBED),
    ],
)
def test_a_closed_loop_is_saturated_only_if_it_ran_out(m: RunMetrics, expected: tuple[bool, bool]) -> None:
    assert diagnose(LoadPlan(), m) == expected


def test_the_tolerated_lateness_is_that_of_the_plan() -> None:
    assert diagnose(plan(max_lag=0.03), lagging(20, 50)) == FINE
    assert diagnose(plan(max_lag=0.001), lagging(2, 95)) == SATURATED


LATENCY, ERRORS, RATE = "response:p99<1ms", "errors:rate<1%", "rate:achieved>=1000"
UNSTARTED, FAILED, LOCAL = "connections:unstarted<1", "connections:failed<1", "errors:local_exhausted<1"
SLOW = metrics(98, 1, 1, ms=3.0)


@pytest.mark.parametrize(
    ("m", "limits", "code"),
    [
        (metrics(), (), 0),
        (metrics(0), (), 1),
        (metrics(), (LATENCY,), 99),
        (metrics(), (ERRORS,), 99),
        (metrics(), (FAILED,), 99),
        (metrics(0), (LATENCY,), 99),  # a limit that was given counts even if nothing was greeted
        # Disturbed: only a limit on latencies is in doubt.
        (lagging(20, 50), (), 0),
        (lagging(20, 50), (LATENCY,), 98),
        (lagging(20, 50), (ERRORS,), 99),
        (lagging(20, 50), (ERRORS, LATENCY), 99),
        (lagging(20, 50), (RATE,), 99),
        (stopped(1.5), (), 0),
        (stopped(1.5), (LATENCY,), 98),
        # Saturated: only a limit on errors stands.
        (lagging(20, 99), (), 98),
        (lagging(20, 99), (LATENCY,), 98),
        (lagging(20, 99), (RATE,), 98),
        (lagging(20, 99), (ERRORS,), 99),
        (lagging(20, 99), (FAILED,), 99),
        (unstarted(2, free=True), (UNSTARTED,), 98),
        (unstarted(1, free=True), (UNSTARTED,), 99),
        # What this machine could not make is not a failure of the target.
        (exhausted(50), (), 98),
        (exhausted(50), (ERRORS, FAILED), 98),
        (exhausted(50), (LOCAL,), 98),
        (exhausted(100), (), 98),
    ],
)
def test_exit_code_precedence(m: RunMetrics, limits: tuple[str, ...], code: int) -> None:
    made = report(m, plan(*limits))
    assert made.exit_code == code
    assert replace(made, interrupted=True).exit_code == 130
    assert LoadReport.from_json(made.to_json()).exit_code == code


def test_a_disturbed_run_that_is_worse_than_its_baseline_is_in_doubt() -> None:
    old = report(metrics(2000))
    assert report(metrics(2000, ms=9)).against(old).exit_code == 99
    late = report(metrics(2000, ms=9))
    late.generator["disturbed"] = True
    assert late.against(old).exit_code == 98
    assert late.against(report(metrics(2000, ms=9))).exit_code == 0
    refused = report(metrics(2000, refused=500))
    refused.generator["disturbed"] = True
    assert refused.against(old).exit_code == 99, "a late start makes no server refuse"


def test_a_lost_part_is_a_failure() -> None:
    made = report()
    made.generator["parts"] = [{"lost": None}, {"lost": "it left"}]
    assert made.exit_code == 1


def test_what_is_true_of_a_part_is_true_of_the_sum() -> None:
    parts = [("a", report(metrics(20_000))), ("b", report(stopped(1.5)))]
    whole = merge(parts)
    assert (whole.generator["saturated"], whole.generator["disturbed"]) == (False, True)
    assert whole.generator["stopped_s"] == 1.5
    whole = merge([*parts, ("c", report(lagging(20, 99)))])
    assert (whole.generator["saturated"], whole.generator["disturbed"]) == (True, False)
    assert whole.exit_code == 98

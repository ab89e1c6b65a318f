"""Results of workers, combined without other machines."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest

from greeter.loadtest import LoadPlan, Threshold
from greeter.loadtest.distributed.results import ClockReading, WorkerResult, best_reading, combine_results
from greeter.loadtest.metrics.run_metrics import RunMetrics
from greeter.loadtest.metrics.timeline import Interval
from greeter.loadtest.plan.outcome import GREETED
from tests.loadtest.report.test_report import ENVIRONMENT
from tests.support.loadtest_peers import checked

if TYPE_CHECKING:
    from greeter.loadtest import LoadReport

STARTED = "2026-11-22T20:00:00Z"
PLAN = LoadPlan("127.0.0.1:9999", rate=1000, duration=2.0, workers=2)


def measured(latencies: list[float]) -> RunMetrics:
    """A run of two seconds, as received from another machine."""
    m = RunMetrics()
    interval = Interval(0.0, attempted=len(latencies), greeted=len(latencies))
    for latency in latencies:
        for histogram in (m.connect, m.first_byte, m.service, m.response, interval.response):
            histogram.record(latency)
        m.lag.record(0.0001)
    m.outcomes[GREETED] = len(latencies)
    m.timeline.add(interval)
    m.elapsed = m.scheduled = 2.0
    m.cpu_percent = [50.0]
    return RunMetrics.from_json(json.loads(json.dumps(m.to_json())))


def worker_result(index: int, latencies: list[float], host: str = "") -> WorkerResult:
    return WorkerResult(
        f"w{index}",
        index,
        host or f"host{index}",
        ClockReading(0.0, 0.002 * index, 0.0001),
        ENVIRONMENT,
        ["raised the limit"],
        (2.0, len(latencies)),
        {"ListenDrops": 1 + index},
        measured(latencies),
    )


def combined(*parts: WorkerResult, plan: LoadPlan = PLAN) -> LoadReport:
    return checked(combine_results(plan, parts, STARTED))


def exact(latencies: list[float], percent: float) -> float:
    """The percentile of the samples themselves, in µs, by nearest rank."""
    rank = max(1, int(percent * len(latencies) / 100 + 0.5))
    return round(sorted(latencies)[rank - 1] * 1e6)


def test_combined_percentiles_are_those_of_all_samples() -> None:
    rng = random.Random(7)
    fast = [rng.lognormvariate(-7, 0.5) for _ in range(3000)]
    slow = [rng.lognormvariate(-4, 1) for _ in range(1000)]
    report = combined(worker_result(0, fast), worker_result(1, slow))
    assert report.connections["attempted"] == report.connections["greeted"] == 4000
    for phase in ("connect", "service", "response"):
        for stat in ("p50", "p90", "p99", "p99.9"):
            found, true = report.latency_us[phase][stat], exact(fast + slow, float(stat[1:]))
            assert found is not None
            assert true <= found <= true * 1.001 + 1, (phase, stat)
    assert report.histogram("response").total == 4000
    assert report.rate["achieved"] == 2000


def test_a_report_lists_the_part_of_each_worker() -> None:
    report = combined(worker_result(0, [0.001] * 30), worker_result(1, [0.002] * 20))
    assert report.exit_code == 0
    one, two = report.generator["parts"]
    assert (one["name"], one["attempted"], one["greeted"], one["lost"]) == ("w0", 30, 30, None)
    assert (two["attempted"], two["clock_ahead_us"], two["clock_within_us"]) == (20, 2000, 100)
    assert two["response_p99_us"] == pytest.approx(2000, rel=0.001)
    assert report.environment == one["environment"] == ENVIRONMENT
    assert "worker w1 made 20 connections with 50 % of a core" in report.notes
    assert any("were up to 2 ms apart, measured to within 100 µs" in note for note in report.notes)
    assert report.notes.count("raised the limit") == 1


def test_kernel_counters_of_a_machine_are_added_once() -> None:
    assert combined(worker_result(0, [0.001]), worker_result(1, [0.001])).kernel == {"ListenDrops": 3}
    assert combined(worker_result(0, [0.001], "one"), worker_result(1, [0.001], "one")).kernel == {
        "ListenDrops": 2
    }


def test_one_saturated_worker_saturates_the_report() -> None:
    late = worker_result(1, [0.001] * 10)
    assert late.metrics is not None
    for _ in range(10):
        late.metrics.lag.record(0.02)
    late.metrics.cpu_percent = [99.0]
    report = combined(worker_result(0, [0.001] * 5000), late)
    assert [row["saturated"] for row in report.generator["parts"]] == [False, True]
    assert report.exit_code == 98
    assert (
        "worker w1 made 10 connections with 99 % of a core, and its generator was saturated" in report.notes
    )


def test_a_lost_worker_is_named_and_left_out() -> None:
    lost = WorkerResult("w1", 1, "host1", progress=(1.25, 1234), lost="it sends no heartbeat")
    report = combined(worker_result(0, [0.001] * 1000), lost)
    assert report.connections["attempted"] == 1000
    assert report.rate["achieved"] == 500
    assert report.exit_code == 1
    assert report.verdict == (
        "All 1,000 clients were greeted, the slowest in 1 ms. "
        "Part of the load is missing: 1 of 2 workers was lost."
    )
    assert report.notes[1] == (
        "worker w1 was lost, and with it 1,000 of 2,000 connections: it sends no heartbeat; its last "
        "progress report, 1.25 s into the run, counted 1,234 connections"
    )


def test_a_lost_worker_comes_before_missed_thresholds() -> None:
    plan = LoadPlan(
        "127.0.0.1:9999", rate=1000, duration=2.0, workers=2, thresholds=[Threshold.parse("response:p50<1us")]
    )
    report = combined(worker_result(0, [0.001] * 1000), WorkerResult("w1", 1, lost="it left"), plan=plan)
    assert report.exit_code == 99
    assert (
        " Part of the load is missing: 1 of 2 workers was lost. Not passed: response:p50<1us was "
        in report.verdict
    )


def test_a_lost_worker_of_a_closed_loop_names_its_clients() -> None:
    plan = LoadPlan("127.0.0.1:9999", connections=5, duration=2.0, workers=2)
    report = combined(worker_result(0, [0.001]), WorkerResult("w1", 1, lost="it left"), plan=plan)
    assert any("lost, and with it 2 of 5 clients: it left" in note for note in report.notes)


def test_a_report_without_any_worker() -> None:
    report = combined(WorkerResult("w0", 0, lost="it left"), WorkerResult("w1", 1, lost="it left"))
    assert report.exit_code == 1
    assert report.connections["attempted"] == 0
    assert report.environment["greeter"]


def test_an_interrupted_worker_interrupts_the_report() -> None:
    one = worker_result(1, [0.001])
    assert one.metrics is not None
    one.metrics.interrupted = True
    report = combined(worker_result(0, [0.001]), one)
    assert report.exit_code == 130
    assert "worker w1 made 1 connections with 50 % of a core, and was interrupted" in report.notes


def test_a_clock_reading_assumes_the_reply_half_way() -> None:
    # Sent at 10 s, received at 12 s: the reply, at 107 s of the other clock, was written at about 11 s.
    reading = ClockReading.read(10.0, 12.0, 107.0, our_time=1000.0, their_time=1002.0)
    assert reading == ClockReading(monotonic_offset=96.0, time_offset=3.0, error_bound=1.0)
    assert 11.0 + reading.monotonic_offset == 107.0
    assert best_reading([reading, ClockReading(95.0, 2.5, 0.25)]).error_bound == 0.25

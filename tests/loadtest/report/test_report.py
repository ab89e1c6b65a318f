from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from greeter.errors import ConfigError
from greeter.loadtest import LoadPlan, LoadReport, Stage, Threshold
from greeter.loadtest.metrics.run_metrics import RunMetrics
from greeter.loadtest.metrics.timeline import Interval, Timeline
from greeter.loadtest.plan.outcome import GREETED
from greeter.loadtest.report.merge import merge
from greeter.loadtest.report.report import build
from greeter.loadtest.report.saved import parse_report
from tests.support.loadtest_peers import checked

ENVIRONMENT: dict[str, Any] = {
    "greeter": "1",
    "python": "3.11.7",
    "uvloop": None,
    "kernel": "Linux",
    "cpus": 2,
    "sysctl": {},
}


def metrics(greeted: int = 98, empty: int = 1, refused: int = 1, ms: float = 3.0) -> RunMetrics:
    """A run of one second."""
    m = RunMetrics(timeline=Timeline(1.0))
    m.outcomes[GREETED], m.outcomes["empty"], m.outcomes["connect_refused"] = greeted, empty, refused
    errors = {"empty": empty, "connect_refused": refused}
    interval = Interval(0.0, greeted + empty + refused, greeted, empty + refused, 5, errors=errors)
    for _ in range(greeted + empty):
        for histogram in (m.connect, m.service, m.response, interval.response):
            histogram.record(ms / 1000)
    for _ in range(greeted):
        m.first_byte.record(ms / 1000)
    for _ in range(empty + refused):
        m.failed.record(0.001)
    m.timeline.add(interval)
    m.elapsed = m.scheduled = 1.0
    m.cpu_percent = [50.0]
    m.peak_open = 5
    return m


def report(m: RunMetrics | None = None, plan: LoadPlan | None = None, **options: Any) -> LoadReport:
    plan = plan or LoadPlan(rate=100, duration=1.0)
    options = {"started_at": "2026-11-22T20:00:00Z", "kernel": {}, "environment": ENVIRONMENT, **options}
    return checked(build(plan, "127.0.0.1:9999", m or metrics(), **options))


def test_the_figures_of_a_run() -> None:
    found = report().to_dict()
    assert found["schema"] == 1
    assert found["connections"] == {
        "attempted": 100,
        "greeted": 98,
        "failed": 2,
        "unstarted": 0,
        "peak_open": 5,
        "cut_off": 0,
        "reset_after_greeting": 0,
        "truncated": 0,
        "closed_while_held": 0,
    }
    assert found["rate"] == {"target": 100.0, "achieved": 100.0, "greeted": 98.0}
    assert found["latency_us"]["response"]["p99"] == 3001
    assert found["latency_us"]["first_byte"]["count"] == 98
    assert found["errors"]["empty"] == 1
    assert found["generator"]["cpu_percent"] == [50.0]


def test_a_closed_loop_has_no_target_and_counts_ended_connections() -> None:
    m = metrics()
    m.elapsed = 2.0
    assert report(m, LoadPlan()).rate == {"target": None, "achieved": 50.0, "greeted": 49.0}
    assert report(RunMetrics(), LoadPlan()).rate == {"target": None, "achieved": 0.0, "greeted": 0.0}


@pytest.mark.parametrize(
    ("options", "target"),
    [
        ({"rate": 3, "duration": 0.5}, 3.0),  # two arrivals, at 0 and 1/3 s
        ({"rate": 3, "count": 2}, 3.0),
        ({"stages": [Stage(0.5, 6)]}, 3.0),
        ({"rate": 10, "stages": [Stage(1, 10), Stage(1, 0)], "count": 10}, 10.0),
    ],
)
def test_the_target_rate_is_not_rounded_to_whole_arrivals(options: dict[str, Any], target: float) -> None:
    assert report(plan=LoadPlan(**options)).rate["target"] == target


def test_the_achieved_rate_of_an_open_loop_counts_started_connections() -> None:
    m = metrics()
    m.cut_off, m.unstarted, m.interrupted = 10, 5, True
    m.scheduled = m.elapsed = 0.5
    assert report(m).rate == {"target": 100.0, "achieved": 220.0, "greeted": 196.0}


def test_a_report_survives_json() -> None:
    one = report(plan=LoadPlan(rate=100, duration=1.0, thresholds=[Threshold.parse("response:p99<2ms")]))
    text = one.to_json()
    assert LoadReport.from_json(text) == one
    assert json.loads(text)["verdict"] == one.verdict
    assert text.endswith("}\n")
    assert one.histogram("response").counts == metrics().response.counts


def as_written_by_0_1(report: LoadReport) -> dict[str, Any]:
    """The JSON of a report without what version 0.1 did not write."""
    values: dict[str, Any] = json.loads(report.to_json())
    del values["address"], values["greetings"], values["bucket_s"], values["plan"]["max_lag_s"]
    for name in ("disturbed", "stopped_s", "unstarted_with_free_slots"):
        del values["generator"][name]
    del values["connections"]["truncated"]
    for row in values["latency_us"].values():
        del row["p95"]
    for row in values["timeline"]:
        del row["partial"], row["errors"], row["p95_us"], row["max_us"]
    return values


def test_a_report_of_version_0_1_can_be_read_and_compared() -> None:
    old = parse_report(json.dumps(as_written_by_0_1(report())))
    assert (old.address, old.greetings) == (None, {"texts": [], "others": 0})
    assert old.bucket_s == 1.0
    assert old.latency_us == report().latency_us, "the histograms have the percentile that was not written"
    assert report().against(old).passed
    assert merge([("a", old), ("b", report(metrics(ms=9.0)))]).connections["attempted"] == 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "old.json is not JSON: "),
        ("{", "old.json is not JSON: "),
        ("[]", "old.json is not a load test report: it has no schema"),
        ("{}", "old.json is not a load test report: it has no schema"),
        ('{"schema": 2}', "old.json has schema 2; this greeter reads schema 1"),
        ('{"schema": "one"}', "old.json has schema 'one'; this greeter reads schema 1"),
        ('{"schema": 1}', "old.json is not a complete report: it has no baseline, bucket_s, "),
    ],
)
def test_an_invalid_report_is_rejected(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LoadReport.from_json(text, "old.json")
    assert str(caught.value).startswith(message)


def test_an_incomplete_report_is_rejected() -> None:
    values = json.loads(report().to_json())
    del values["latency_us"]["connect"]["p99.9"]
    del values["rate"]["greeted"]
    with pytest.raises(ConfigError, match=r"it has no rate\.greeted$"):
        LoadReport.from_json(json.dumps(values))
    values = json.loads(report().to_json())
    del values["latency_us"]["connect"]["p99.9"]
    with pytest.raises(ConfigError, match=r"it has no latency_us\.connect\.p99\.9$"):
        LoadReport.from_json(json.dumps(values))
    values["latency_us"]["connect"] = 5
    with pytest.raises(ConfigError, match="report is not a load test report"):
        LoadReport.from_json(json.dumps(values))
    values["latency_us"] = 5
    with pytest.raises(ConfigError, match="report is not a load test report"):
        LoadReport.from_json(json.dumps(values))


def test_thresholds_are_checked() -> None:
    plan = LoadPlan(
        rate=100,
        duration=1.0,
        thresholds=[Threshold.parse("response:p99<20ms"), Threshold.parse("errors:rate<1%")],
    )
    found = report(plan=plan)
    assert [threshold["passed"] for threshold in found.thresholds] == [True, False]
    assert found.thresholds[1] == {"expr": "errors:rate<1%", "actual": 2.0, "unit": "%", "passed": False}
    assert not found.passed


def lagging(ms: float, cpu: float, unstarted: int = 0) -> RunMetrics:
    m = metrics()
    for _ in range(100):
        m.lag.record(ms / 1000)
    m.cpu_percent = [20.0, cpu]
    m.unstarted = unstarted
    return m


def test_syn_retransmits_are_bands() -> None:
    m = metrics()
    for s in (1.02, 1.03, 3.1, 7.2):
        m.connect.record(s)
    assert report(m).syn_retransmits == {"1s": 2, "3s": 1, "7s": 1}


def test_a_report_is_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        report().target = "x"  # type: ignore[misc]  # the test is that it is read-only

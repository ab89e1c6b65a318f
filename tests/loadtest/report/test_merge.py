from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import Any

import pytest

from greeter.errors import ConfigError
from greeter.loadtest import LoadPlan, LoadReport, Stage, Threshold
from greeter.loadtest.metrics.run_metrics import HISTOGRAMS, merged
from greeter.loadtest.report.merge import merge
from greeter.loadtest.report.report import build
from tests.loadtest.report.test_charts import long_run
from tests.loadtest.report.test_report import ENVIRONMENT, lagging, metrics, report
from tests.support.loadtest_peers import checked


def again(run: LoadReport) -> LoadReport:
    """Return the report as read from its file."""
    return LoadReport.from_json(run.to_json())


def made(started_at: str = "2026-11-22T20:00:00.500Z", ms: float = 9.0, **options: Any) -> LoadReport:
    return report(metrics(ms=ms), started_at=started_at, **options)


def test_a_merged_report_equals_that_of_one_run() -> None:
    parts = [metrics(98, 1, 1, ms=3.0), lagging(0.4, 60), metrics(0, 0, 5, ms=80.0)]
    parts[2].count_reason("connect_refused", "Connection refused")
    parts[2].unstarted = 7
    plan = LoadPlan(rate=100, duration=1.0, connections=30, thresholds=[Threshold.parse("errors:rate<3%")])
    reports = [report(part, plan) for part in parts]
    whole = checked(merge([(f"{n}.json", again(run)) for n, run in enumerate(reports)]))
    one = build(
        dataclasses.replace(plan, rate=300, connections=90, workers=3),
        "127.0.0.1:9999",
        merged(parts),
        started_at="2026-11-22T20:00:00Z",
        kernel={},
        environment=ENVIRONMENT,
    )
    found, expected = whole.to_dict(), one.to_dict()
    for name in expected.keys() - {"generator", "notes"}:
        assert found[name] == expected[name], name
    assert found["generator"].items() >= expected["generator"].items()
    assert whole.rate["target"] == 300
    assert not whole.passed, "2 % of one part, 4.4 % of the whole"


def test_merging_keeps_every_sample() -> None:
    reports = [long_run(20, seed=1), long_run(30, seed=2)]
    for run in reports:
        run.plan["duration_s"] = 30.0
    whole = checked(merge([("a", reports[0]), ("b", reports[1])]))
    for name in HISTOGRAMS:
        counts = Counter(reports[0].histogram(name).counts) + Counter(reports[1].histogram(name).counts)
        assert whole.histogram(name).counts == counts
    assert len(whole.timeline) == 30
    assert whole.timeline[5]["attempted"] == sum(run.timeline[5]["attempted"] for run in reports)
    assert whole.timeline[5]["open"] == sum(run.timeline[5]["open"] for run in reports)


def test_a_merged_report_lists_its_parts() -> None:
    late = lagging(20, 99)
    late.interrupted = True
    other = {**ENVIRONMENT, "greeter": "2"}
    parts = [
        ("a.json", report(notes=["both", "a's own"], kernel={"ListenDrops": 3})),
        ("b.json", report(late, started_at="2026-11-22T20:00:00.250Z", notes=["both"], environment=other)),
    ]
    parts[1] = ("b.json", dataclasses.replace(parts[1][1], target="localhost:9999"))
    whole = checked(merge(parts))
    rows = whole.generator["parts"]
    assert [(row["name"], row["attempted"], row["saturated"], row["interrupted"]) for row in rows] == [
        ("a.json", 100, False, False),
        ("b.json", 100, True, True),
    ]
    assert rows[1]["environment"]["greeter"] == "2"
    assert whole.generator["saturated"]
    assert whole.interrupted
    assert whole.notes == [
        "both",
        "a's own",
        "sum of 2 reports: a.json, b.json",
        "by their clocks, the parts started 0.25 s apart; the timeline aligns their starts",
        "the generator of b.json was saturated",
        "b.json was interrupted",
        "the parts had different targets: 127.0.0.1:9999, localhost:9999",
        "the parts had different versions of greeter: 1, 2",
    ]
    assert whole.started_at == "2026-11-22T20:00:00Z"


def test_different_plans_of_the_parts_are_noted() -> None:
    def plan(**options: Any) -> LoadPlan:
        return LoadPlan(rate=100, duration=1.0, **options)

    asked = plan(hold=2.0, until="line", expect="220", tls=True, timeout=3.0, connect_timeout=0.5)
    whole = checked(merge([("a", report(plan=plan())), ("b", made(plan=asked)), ("c", made(ms=1))]))
    assert [note for note in whole.notes if "plans" in note] == [
        "the parts had different plans, held open for: 0 s, 2 s",
        "the parts had different plans, timeout: 10 s, 3 s",
        "the parts had different plans, connect timeout: 5 s, 0.5 s",
        "the parts had different plans, until: eof, line",
        "the parts had different plans, expect: none, '220'",
        "the parts had different plans, tls: no, yes",
    ]


def test_one_saturated_part_saturates_the_report() -> None:
    few = report(lagging(20, 99))
    many = report(metrics(20_000))
    assert merge([("a", few), ("b", many)]).exit_code == 98


def test_a_merged_report_can_be_a_part() -> None:
    whole = merge([("a", report()), ("b", made())])
    more = checked(merge([("ab.json", again(whole)), ("c", made(ms=2.0))]))
    assert [row["name"] for row in more.generator["parts"]] == ["ab.json: a", "ab.json: b", "c"]
    assert more.connections["attempted"] == 300
    assert more.rate["target"] == 300


def test_parts_that_did_not_run_at_the_same_time() -> None:
    whole = merge([("a", report()), ("b", made("2026-11-22T21:00:00Z"))])
    assert (
        "by their clocks, the parts started 60 min apart and did not all run at the same time: "
        in " ".join(whole.notes)
    )


def test_kernel_counters_are_not_added() -> None:
    parts = [
        report(kernel={"ListenDrops": 3}),
        made(kernel={"ListenDrops": 5, "SyncookiesSent": 1}),
        made(ms=1),
    ]
    whole = merge([(str(n), run) for n, run in enumerate(parts)])
    assert whole.kernel == {"ListenDrops": 5, "SyncookiesSent": 1}


def test_plans_add_up() -> None:
    stages = [
        LoadPlan(stages=[Stage(1, rate), Stage(2, 5)], source_ips=[ip])
        for rate, ip in ((10, "127.0.0.1"), (20, "127.0.0.2"))
    ]
    whole = merge([("a", report(plan=stages[0])), ("b", made(plan=stages[1]))])
    assert whole.plan["stages"] == [{"duration_s": 1, "rate": 30}, {"duration_s": 2, "rate": 10}]
    assert whole.plan["source_ips"] == ["127.0.0.1", "127.0.0.2"]
    assert whole.plan["workers"] == 2
    closed = merge([("a", report(plan=LoadPlan(count=10))), ("b", made(plan=LoadPlan(count=20)))])
    assert (closed.plan["count"], closed.plan["connections"], closed.rate["target"]) == (30, 100, None)


def test_latencies_over_a_minute_are_counted() -> None:
    m = metrics()
    m.response.record(61)
    m.service.record(61)
    m.outcomes["empty"] += 1
    assert merge([("a", build_of(m)), ("b", report())]).generator["latencies_over_60_s"] == 2


def build_of(m: Any) -> LoadReport:
    plan = LoadPlan(rate=100, duration=1.0)
    return build(
        plan, "127.0.0.1:9999", m, started_at="2026-11-22T20:00:01Z", kernel={}, environment=ENVIRONMENT
    )


def broken(path: str, value: Any) -> LoadReport:
    values = json.loads(made().to_json())
    inner = values
    *way, last = path.split(".")
    for step in way:
        inner = inner[int(step)] if isinstance(inner, list) else inner[step]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return LoadReport.from_json(json.dumps(values))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (made(plan=LoadPlan()), "b is not a part of the same test as a: its loop is closed, not open"),
        (
            made(plan=LoadPlan(rate=100, duration=2.0)),
            "b is not a part of the same test as a: its duration in seconds is 2.0, not 1.0",
        ),
        (
            made(plan=LoadPlan(stages=[Stage(0.25, 5), Stage(0.75, 5)])),
            "b is not a part of the same test as a: its stages have other durations",
        ),
        (
            made(plan=LoadPlan(rate=100, duration=1.0, count=20)),
            "b is not a part of the same test as a: only one of them has a count",
        ),
        (report(), "b and a are the same run"),
        (broken("plan.timeout_s", None), "b is not a complete report: its plan has no timeout_s"),
        (broken("started_at", "yesterdayZ"), "b started at 'yesterdayZ', which is not a time"),
        (broken("errors.hiccup", 1), "b has errors of unknown classes: hiccup"),
        (
            broken("histograms.service", "HISTnonsense"),
            "b has a histogram that cannot be read: not an HdrHistogram",
        ),
        (
            broken("timeline.0.histogram", "HIST"),
            "b has a histogram that cannot be read: not an HdrHistogram",
        ),
    ],
)
def test_incompatible_parts_are_rejected(other: LoadReport, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        merge([("a", report()), ("b", other)])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_single_report_is_rejected() -> None:
    with pytest.raises(ConfigError, match="give two or more reports"):
        merge([("a", report())])

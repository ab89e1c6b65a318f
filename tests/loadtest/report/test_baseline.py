from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

from greeter.errors import ConfigError
from greeter.loadtest import LoadPlan, Stage
from greeter.loadtest.report.baseline import compare
from tests.loadtest.report.test_report import metrics, report
from tests.support.loadtest_peers import checked

if TYPE_CHECKING:
    from greeter.loadtest.metrics.run_metrics import RunMetrics


def values(**latencies: float) -> dict[str, Any]:
    """A report's JSON with some figures of ``response`` changed."""
    found = copy.deepcopy(report(metrics(2000)).to_dict())
    found["latency_us"]["response"].update(latencies)
    return found


def worse(new: dict[str, Any], old: dict[str, Any], tolerance: float = 10.0) -> list[str]:
    result = compare(new, old, tolerance)
    assert result["passed"] == (not any(change["worse"] for change in result["figures"]))
    return [change["figure"] for change in result["figures"] if change["worse"]]


def test_the_same_run_is_not_worse() -> None:
    result = compare(values(), values(), name="old.json")
    assert result["passed"]
    assert (result["name"], result["tolerance_percent"], result["differences"]) == ("old.json", 10.0, [])
    assert {change["change_percent"] for change in result["figures"]} == {0.0}
    assert len(result["figures"]) == 4 * 5 + 3


@pytest.mark.parametrize("stat", ["mean", "p50", "p90", "p95", "p99"])
def test_a_latency_that_is_worse_by_more_than_the_tolerance(stat: str) -> None:
    assert worse(values(**{stat: 1101}), values(**{stat: 1000})) == [f"response {stat}"]
    assert worse(values(**{stat: 1100}), values(**{stat: 1000})) == []
    assert worse(values(**{stat: 500}), values(**{stat: 1000})) == []
    assert worse(values(**{stat: 1101}), values(**{stat: 1000}), tolerance=20) == []


def test_a_change_of_two_microseconds_is_ignored() -> None:
    assert worse(values(p50=12), values(p50=10)) == []
    assert worse(values(p50=13), values(p50=10)) == ["response p50"]


@pytest.mark.parametrize("stat", ["min", "max", "p99.99"])
def test_single_connection_statistics_are_not_compared(stat: str) -> None:
    assert worse(values(**{stat: 10**6}), values(**{stat: 1})) == []


@pytest.mark.parametrize(("stat", "least"), [("p90", 100), ("p95", 200), ("p99", 1000), ("p99.9", 10_000)])
def test_a_high_percentile_needs_enough_latencies_in_both_runs(stat: str, least: int) -> None:
    few, many = {stat: 9000, "count": least - 1}, {stat: 9000, "count": least}
    assert worse(values(**few), values(**many | {stat: 10})) == []
    assert worse(values(**many), values(**few | {stat: 10})) == []
    assert worse(values(**many), values(**many | {stat: 10})) == [f"response {stat}"]


def test_rates_and_errors() -> None:
    new, old = values(), values()
    new["rate"]["achieved"] = old["rate"]["achieved"] * 0.89
    new["rate"]["greeted"] = old["rate"]["greeted"] * 0.91
    assert worse(new, old) == ["rate achieved"]
    new = values()
    new["connections"]["failed"] = 3
    assert worse(new, old) == ["errors"]
    old["connections"]["failed"] = 0
    new["connections"]["failed"] = 1
    assert worse(new, old) == ["errors"], "from none to one is worse by any tolerance"
    assert compare(new, old)["figures"][-1]["change_percent"] is None


def test_a_run_without_greetings_is_worse() -> None:
    nothing = report(metrics(0, 0, 5)).to_dict()
    found = worse(nothing, values())
    assert "response p50" in found
    assert "rate greeted" in found
    attempted_none = report(metrics(0, 0, 0)).to_dict()
    assert "errors" not in [change["figure"] for change in compare(attempted_none, values())["figures"]]


@pytest.mark.parametrize("nothing", [metrics(0, 0, 5), metrics(0, 3, 0), metrics(0, 0, 0)])
def test_a_run_without_greetings_is_not_a_baseline(nothing: RunMetrics) -> None:
    with pytest.raises(ConfigError, match=r"^old\.json is not a usable baseline: nothing was greeted in it$"):
        report().against(report(nothing), name="old.json")


def test_different_plans_are_listed() -> None:
    other = report(metrics(2000), LoadPlan(rate=50, duration=2.0, connections=7)).to_dict()
    assert compare(other, values())["differences"] == [
        "rate: 100 then, 50 now",
        "connections: 1000 then, 7 now",
    ]
    ramp = report(metrics(2000), LoadPlan(stages=[Stage(1.0, 200.0), Stage(0.5, 1000.0)])).to_dict()
    assert compare(ramp, values())["differences"] == [
        "rate: 100 then, none now",
        "stages: none then, 1s:200 0.5s:1000 now",
    ]


def test_a_closed_loop_compares_service_only() -> None:
    closed = report(metrics(2000), LoadPlan()).to_dict()
    phases = {change["figure"].split()[0] for change in compare(closed, closed)["figures"]}
    assert phases == {"connect", "first_byte", "service", "rate", "errors"}


def test_a_report_contains_the_comparison() -> None:
    new, old = report(metrics(2000, ms=5)), report(metrics(2000))
    against = checked(new.against(old, name="old.json"))
    assert not against.passed
    assert against.exit_code == 99
    assert "Not passed: connect mean went from 3 ms to 5 ms (+67 %); " in against.verdict
    assert checked(old.against(new)).exit_code == 0

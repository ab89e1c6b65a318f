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
    """A report's JSON with some of the response's figures changed."""
    found = copy.deepcopy(report(metrics(2000)).to_dict())
    found["latency_us"]["response"].update(latencies)
    return found


def worse(new: dict[str, Any], old: dict[str, Any], tolerance: float = 10.0) -> list[str]:
    result = compare(new, old, tolerance)
    assert result["passed"] == (not any(move["worse"] for move in result["figures"]))
    return [move["figure"] for move in result["figures"] if move["worse"]]


def test_the_same_run_is_no_worse() -> None:
    result = compare(values(), values(), name="old.json")
    assert result["passed"]
    assert (result["name"], result["tolerance_percent"], result["differences"]) == ("old.json", 10.0, [])
    assert {move["change_percent"] for move in result["figures"]} == {0.0}
    assert len(result["figures"]) == 4 * 4 + 3


@pytest.mark.parametrize("stat", ["mean", "p50", "p90", "p99"])
def test_a_latency_that_is_worse_by_more_than_the_tolerance(stat: str) -> None:
    assert worse(values(**{stat: 1101}), values(**{stat: 1000})) == [f"response {stat}"]
    assert worse(values(**{stat: 1100}), values(**{stat: 1000})) == []
    assert worse(values(**{stat: 500}), values(**{stat: 1000})) == []
    assert worse(values(**{stat: 1101}), values(**{stat: 1000}), tolerance=20) == []


def test_two_microseconds_are_no_move() -> None:
    assert worse(values(p50=12), values(p50=10)) == []
    assert worse(values(p50=13), values(p50=10)) == ["response p50"]


@pytest.mark.parametrize("stat", ["min", "max", "p99.99"])
def test_luck_is_not_compared(stat: str) -> None:
    assert worse(values(**{stat: 10**6}), values(**{stat: 1})) == []


@pytest.mark.parametrize(("stat", "least"), [("p90", 100), ("p99", 1000), ("p99.9", 10_000)])
def test_a_rare_percentile_needs_enough_latencies_in_both(stat: str, least: int) -> None:
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


def test_nothing_now_where_there_was_something() -> None:
    nothing = report(metrics(0, 0, 5)).to_dict()
    found = worse(nothing, values())
    assert "response p50" in found
    assert "rate greeted" in found
    attempted_none = report(metrics(0, 0, 0)).to_dict()
    assert "errors" not in [move["figure"] for move in compare(attempted_none, values())["figures"]]


@pytest.mark.parametrize("nothing", [metrics(0, 0, 5), metrics(0, 3, 0), metrics(0, 0, 0)])
def test_where_nothing_was_greeted_is_no_baseline(nothing: RunMetrics) -> None:
    with pytest.raises(ConfigError, match=r"^old\.json is no baseline: nothing was greeted in it$"):
        report().against(report(nothing), name="old.json")


def test_another_plan_is_another_question() -> None:
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


def test_in_a_closed_loop_service_is_response() -> None:
    closed = report(metrics(2000), LoadPlan()).to_dict()
    phases = {move["figure"].split()[0] for move in compare(closed, closed)["figures"]}
    assert phases == {"connect", "first_byte", "service", "rate", "errors"}


def test_the_report_holds_the_comparison() -> None:
    new, old = report(metrics(2000, ms=5)), report(metrics(2000))
    against = checked(new.against(old, name="old.json"))
    assert not against.passed
    assert against.exit_code == 99
    assert against.verdict.startswith("Not passed: connect mean went from 3 ms to 5 ms (+66.7 %); ")
    assert checked(old.against(new)).exit_code == 0

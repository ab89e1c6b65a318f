from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from greeter.loadtest import LoadPlan, Threshold
from greeter.loadtest.metrics.histogram import Histogram, index_of
from greeter.loadtest.report.verdict import format_actual, format_change, format_value, headline, notes
from tests.loadtest.report.test_report import lagging, metrics, report


def test_a_headline_counts_greeted_clients() -> None:
    assert report(metrics(100, 0, 0)).verdict == "All 100 clients were greeted, the slowest in 3 ms."
    assert report(metrics(1, 0, 0)).verdict == "The only client was greeted, in 3 ms."
    some = "98 of 100 clients were greeted, the slowest in 3 ms; 1 connect_refused, 1 empty."
    assert report().verdict == some


def test_a_headline_without_greetings_names_class_and_count() -> None:
    m = metrics(0, 0, 1000)
    m.count_reason("connect_refused", "Connection refused")
    assert report(m).verdict == "Nothing was greeted: 1,000 connect_refused (Connection refused)."
    assert report(metrics(0, 0, 0)).verdict == "Nothing was greeted: nothing was attempted."


def test_a_headline_of_a_saturated_run() -> None:
    m = lagging(20, 99)
    m.scheduled = 10.0
    assert report(m).verdict == (
        "The generator was the limit: it started 10 of 100 connections per second, 20 ms late at p99, "
        "with 99 % of a core used. The figures describe the generator, not the server. "
        "Use more workers or a lower rate."
    )


def test_a_headline_of_an_interrupted_run() -> None:
    m = metrics()
    m.interrupted, m.cut_off, m.elapsed = True, 7, 3.21
    assert report(m).verdict == (
        "Interrupted after 3.21 s. 98 of 100 clients were greeted; 7 connections were still open."
    )
    m = metrics(100, 0, 0)
    m.interrupted = True
    assert report(m).verdict.endswith(" All 100 clients were greeted; no connection was still open.")
    m = metrics(0, 0, 0)
    m.interrupted, m.cut_off = True, 1
    assert report(m).verdict.endswith(" No client was greeted; 1 connection was still open.")
    m = metrics(100, 0, 0)
    m.interrupted, m.cut_off = True, 1
    assert report(m).verdict.endswith(" All 100 clients were greeted; 1 connection was still open.")


def test_a_headline_names_missed_thresholds_and_worse_figures() -> None:
    plan = LoadPlan(
        rate=100,
        duration=1.0,
        thresholds=[Threshold.parse("response:p99<1ms"), Threshold.parse("errors:rate<9%")],
    )
    new, old = report(metrics(2000, ms=6), plan), report(metrics(2000))
    assert new.verdict == "Not passed: response:p99<1ms was 6 ms."
    verdict = new.against(old).verdict
    assert "response p99 went from 3 ms to 6 ms (+100 %)" in verdict
    short = headline(new.against(old).to_dict(), max_changes=2)
    assert short.count(" went from ") == 2
    assert short.startswith("Not passed: response:p99<1ms was 6 ms; response ")
    worse = sum(change["worse"] for change in (new.against(old).baseline or {})["figures"])
    assert short.endswith(f"; and {worse - 2} more figures are worse.")
    nothing = report(metrics(0), plan)
    assert nothing.verdict.startswith("Not passed: response:p99<1ms was 3 ms")
    assert report(metrics(0, 0), plan).verdict.startswith("Not passed: response:p99<1ms was not measured")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "ms", "not measured"),
        (3.14159, "ms", "3.14 ms"),
        (0.1, "%", "0.1%"),
        (950, "/s", "950/s"),
        (37_771.4, "/s", "37,771/s"),
        (12_345, "", "12,345"),
        (0.00001, "%", "0.00001%"),
        (7, "", "7"),
    ],
)
def test_a_value_has_its_unit(value: float | None, unit: str, text: str) -> None:
    assert format_value(value, unit) == text


@pytest.mark.parametrize(
    ("expr", "value", "text"),
    [
        ("rate:achieved>=950", 949.96, "949.96/s"),
        ("rate:achieved>=949.98", 949.96, "949.96/s"),
        ("rate:achieved>=950", 950.0, "950/s"),
        ("rate:achieved>=950", 951.2, "951/s"),
        ("rate:achieved>=10k", 9999.9, "9,999.9/s"),
        ("response:p99<20ms", 19.9996, "19.9996 ms"),
        ("response:p99<20ms", 3.001, "3 ms"),
        ("errors:rate<1%", None, "not measured"),
        ("of:tomorrow<1", 5.0, "5"),
    ],
)
def test_a_value_near_its_limit_has_distinguishing_digits(expr: str, value: float | None, text: str) -> None:
    unit = {"rate": "/s", "resp": " ms", "erro": "%"}.get(expr[:4], "").strip()
    assert format_actual({"expr": expr, "actual": value, "unit": unit, "passed": False}) == text


def test_a_change_as_text() -> None:
    change = {"figure": "errors", "unit": "%", "old": 0, "new": 0.5, "change_percent": None, "worse": True}
    assert format_change(change) == "errors went from 0% to 0.5%"
    change = {
        "figure": "service p50",
        "unit": "us",
        "old": 900,
        "new": None,
        "change_percent": None,
        "worse": True,
    }
    assert format_change(change) == "service p50 went from 900 µs to nothing"


def assert_notes(*parts: str, **changes: Any) -> None:
    found = "\n".join(notes(replace(report(), **changes).to_dict()))
    for part in parts:
        assert part in found
    assert found or not parts


def test_a_plain_run_has_no_notes() -> None:
    assert notes(report().to_dict()) == []


def test_notes_of_unusual_runs() -> None:
    assert_notes("raised the limit", notes=["raised the limit"])
    assert_notes("2 connects took 1 s", "1 connects took 7 s", syn_retransmits={"1s": 2, "3s": 0, "7s": 1})
    assert_notes(
        "ListenOverflows +12 on this machine: connections that found an accept queue full",
        kernel={"ListenOverflows": 12, "X": 0},
    )
    assert_notes("Other +1 on this machine: counted by the kernel", kernel={"Other": 1})
    connections = report().connections
    assert_notes(
        "3 connections were reset after the greeting", connections=connections | {"reset_after_greeting": 3}
    )
    assert_notes(
        "4 connections were closed by the server while held",
        connections=connections | {"closed_while_held": 4},
    )
    assert_notes(
        "5 connections were due but not started: the limit of 1,000 open connections was reached",
        connections=connections | {"unstarted": 5, "peak_open": 1000},
    )
    assert_notes(
        "5 connections were due but not started: the generator was late when the schedule ended",
        connections=connections | {"unstarted": 5, "peak_open": 999},
    )
    assert_notes("6 latencies over 60 s", generator=report().generator | {"latencies_over_60_s": 6})


def test_notes_of_a_closed_loop() -> None:
    found = notes(report(plan=LoadPlan()).to_dict())
    assert found == ["closed loop: a client connects only after an earlier one is done, which hides stalls"]
    m = metrics()
    m.cpu_percent = [97.0]
    assert "a worker used 97 % of a core" in notes(report(m, LoadPlan()).to_dict())[1]


def test_notes_of_an_unreliable_baseline() -> None:
    def against(**changes: Any) -> list[str]:
        return notes(report().against(replace(report(), **changes), name="old.json").to_dict())

    assert against() == []
    assert against(interrupted=True) == [
        "the baseline old.json was interrupted: its figures cover only part of the run"
    ]
    assert against(generator=report().generator | {"saturated": True}) == [
        "the generator of the baseline old.json was the limit: its figures describe the generator"
    ]
    parts = [{"lost": None}, {"lost": "it left"}]
    assert against(generator=report().generator | {"parts": parts}) == [
        "the baseline old.json lacks part of its load"
    ]


def test_a_saturated_run_has_no_note_on_unstarted_connections() -> None:
    m = lagging(20, 99)
    m.unstarted, m.lag = 5, Histogram({index_of(20_000): 1})
    assert notes(report(m).to_dict()) == []

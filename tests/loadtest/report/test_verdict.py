from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from greeter.loadtest import LoadPlan, Threshold
from greeter.loadtest.report.verdict import format_actual, format_change, format_value, headline, notes, quote
from tests.loadtest.report.test_exit_code import exhausted
from tests.loadtest.report.test_report import lagging, metrics, report

if TYPE_CHECKING:
    from greeter.loadtest.metrics.run_metrics import RunMetrics


def said(*greetings: bytes, m: RunMetrics | None = None) -> RunMetrics:
    """A run with these greetings."""
    m = m or metrics()
    for greeting in greetings:
        m.greetings.heads[greeting] += 1
    return m


def test_a_headline_counts_greeted_clients() -> None:
    assert report(metrics(100, 0, 0)).verdict == "All 100 clients were greeted, the slowest in 3 ms."
    assert report(metrics(1, 0, 0)).verdict == "The only client was greeted, in 3 ms."
    some = "98 of 100 clients were greeted, the slowest in 3 ms; 2 failed: 1 connect_refused, 1 empty."
    assert report().verdict == some
    one = "98 of 99 clients were greeted, the slowest in 3 ms; 1 failed: empty."
    assert report(metrics(98, 1, 0)).verdict == one


def test_a_headline_without_greetings_names_class_and_count() -> None:
    m = metrics(0, 0, 1000)
    m.count_reason("connect_refused", "Connection refused")
    assert report(m).verdict == "Nothing was greeted; 1,000 failed: connect_refused (Connection refused)."
    assert report(metrics(0, 0, 0)).verdict == "Nothing was attempted."


def test_a_headline_names_different_greetings() -> None:
    refusing = said(*[b"220 ready"] * 29, *[b"421 too many connections"] * 71)
    assert report(refusing).verdict.endswith(
        ' There were different greetings: 71 × "421 too many connections", 29 × "220 ready".'
    )
    many = said(*(bytes((103 + n,)) * (5 - n) for n in range(5)), b"x" * 200)
    assert report(many).verdict.endswith(' 1 × "ggggg", 1 × "hhhh", 1 × "iii", 3 others.')
    assert "greetings" not in report(said(b"220 ready", b"220 ready")).verdict


def test_a_headline_quotes_an_unexpected_greeting() -> None:
    m = said(b"421 too many connections", m=metrics(0, 0, 0))
    m.outcomes["unexpected_greeting"] = 1
    values = replace(report(metrics(0, 0, 0)), errors=report().errors | {"unexpected_greeting": 1})
    values = replace(values, greetings=m.greetings.to_json())
    assert headline(values.to_dict()).endswith(' The greeting was "421 too many connections".')


def test_a_greeting_is_quoted_within_a_length() -> None:
    assert quote("220 ready") == '"220 ready"'
    assert quote("x" * 100, 10) == '"xxxxxxxxx…"'
    assert quote(" ") == quote("") == "(no text)"


def test_a_headline_of_a_saturated_run() -> None:
    counts = "98 of 100 clients were greeted, the slowest in 3 ms; 2 failed: 1 connect_refused, 1 empty. "
    busy = lagging(20, 99)
    assert report(busy).verdict == (
        f"{counts}The generator was saturated: 20 ms late at p99, 99 % of a core used. "
        "Latencies and rates describe the generator, not the server. Give it more workers or ask for less."
    )
    all_cores = report(busy, LoadPlan(rate=100, duration=1.0, workers=2))
    assert all_cores.verdict.endswith(
        "All cores of the machine are in use: ask for less, or use more machines."
    )
    idle = metrics()
    idle.unstarted = idle.unstarted_with_free_slots = 100
    assert report(idle).verdict == (
        f"{counts}The generator was saturated: 100 of 200 connections not started, 50 % of a core used. "
        "Latencies and rates describe the generator, not the server. "
        "It had CPU to spare, so the machine was busy: ask for less, or use an idle machine."
    )


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("Cannot assign requested address", "ports. Add source addresses (--source-ip) or ask for less."),
        (
            "Too many open files",
            "descriptors. Raise the limit of open files (ulimit -n) or ask for less.",
        ),
        ("Cannot allocate memory", "memory or ports. Ask for less."),
    ],
)
def test_a_headline_of_a_machine_that_ran_out(reason: str, advice: str) -> None:
    m = exhausted(40)
    m.count_reason("local_exhausted", reason)
    assert report(m).verdict == (
        "60 of 100 clients were greeted, the slowest in 3 ms; "
        f"40 could not be made: local_exhausted ({reason}). "
        f"The generator was saturated: this machine ran out of {advice}"
    )


def test_a_headline_of_a_disturbed_run_that_missed_a_latency() -> None:
    plan = LoadPlan(rate=100, duration=1.0, thresholds=[Threshold.parse("response:p99<1ms")])
    assert report(lagging(20, 40), plan).verdict.endswith(
        "Not passed: response:p99<1ms was 3 ms. The machine of the generator was busy: starts were 20 ms "
        "late at p99, with 40 % of a core used. What was missed may be due to that. "
        "Repeat the run on an idle machine."
    )
    assert "busy" not in report(lagging(20, 40)).verdict, "a note is enough"


def test_a_headline_of_an_interrupted_run() -> None:
    m = metrics()
    m.interrupted, m.cut_off, m.elapsed = True, 7, 3.21
    assert report(m).verdict.startswith("98 of 100 clients were greeted, ")
    assert report(m).verdict.endswith("Interrupted after 3.21 s; 7 connections were still open.")
    m = metrics(100, 0, 0)
    m.interrupted = True
    assert report(m).verdict.endswith("; no connection was still open.")
    m = metrics(0, 0, 0)
    m.interrupted, m.cut_off = True, 1
    assert report(m).verdict == "Nothing was attempted. Interrupted after 1 s; 1 connection was still open."


def test_a_headline_names_missed_thresholds_and_worse_figures() -> None:
    plan = LoadPlan(
        rate=100,
        duration=1.0,
        thresholds=[Threshold.parse("response:p99<1ms"), Threshold.parse("errors:rate<9%")],
    )
    new, old = report(metrics(2000, ms=6), plan), report(metrics(2000))
    assert new.verdict.endswith(" Not passed: response:p99<1ms was 6 ms.")
    verdict = new.against(old).verdict
    assert "response p99 went from 3 ms to 6 ms (+100 %)" in verdict
    short = headline(new.against(old).to_dict(), max_changes=2)
    assert short.count(" went from ") == 2
    assert " Not passed: response:p99<1ms was 6 ms; response " in short
    worse = sum(change["worse"] for change in (new.against(old).baseline or {})["figures"])
    assert short.endswith(f"; and {worse - 2} more figures are worse.")
    nothing = report(metrics(0), plan)
    assert " Not passed: response:p99<1ms was 3 ms" in nothing.verdict
    assert " Not passed: response:p99<1ms was not measured" in report(metrics(0, 0), plan).verdict


def test_a_headline_says_how_to_measure_a_service_that_stays_connected() -> None:
    errors = report().errors | {"greeting_timeout": 3}
    made = replace(report(), errors=errors)
    assert made.verdict.endswith(
        "The service stays connected after its greeting: --until line ends it there."
    )
    line = replace(made, plan=LoadPlan(until="line").to_dict())
    assert "stays connected" not in line.verdict


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
    assert_notes(
        "7 TLS streams ended without close_notify: bytes may be missing",
        connections=connections | {"truncated": 7},
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
        "the generator of the baseline old.json was saturated: its figures describe the generator"
    ]
    parts = [{"lost": None}, {"lost": "it left"}]
    assert against(generator=report().generator | {"parts": parts}) == [
        "the baseline old.json lacks part of its load"
    ]


def test_a_saturated_run_has_no_note_on_unstarted_connections() -> None:
    m = lagging(20, 99)
    m.unstarted = 5
    assert notes(report(m).to_dict()) == []


def test_notes_of_a_disturbed_run() -> None:
    assert notes(report(lagging(20, 40)).to_dict()) == [
        "starts were 20 ms late at p99, with 40 % of a core used: the machine was busy; "
        "response times include that"
    ]
    m = metrics()
    m.stopped = 1.47
    assert notes(report(m).to_dict()) == [
        "the generator stood still for 1.47 s: it was stopped, or its machine was paused; "
        "latencies include that time"
    ]


def test_a_headline_names_a_service_whose_use_of_tls_differs() -> None:
    m = metrics(0, 0, 0)
    m.count_reason("tls_error", "wrong version number")
    made = report(m, LoadPlan(tls=True, rate=100, duration=1.0))
    assert made.verdict.endswith(" The service does not speak TLS.")
    assert "TLS" not in report(m).verdict
    alert = said(b"\x15\x03\x01\x00\x02\x02\x46")
    assert report(alert).verdict.endswith(" The service speaks TLS, which --tls uses.")


def timeline(*ended: int, open: int = 5) -> list[dict[str, Any]]:
    return [{"greeted": count, "failed": 0, "open": open} for count in ended]


@pytest.mark.parametrize(
    ("rows", "span"),
    [
        (timeline(9, 9, 0, 9, 0, 0, 0, 9, 9), "0.4 s to 0.7 s"),
        (timeline(9, 0, 0, 0, 0), "0.1 s to 0.5 s"),
        (timeline(9, 0, 0, 9), ""),  # 0.2 s
        (timeline(9, 0, 0, 0, 9, open=0), ""),  # nothing was open
        ([], ""),
    ],
)
def test_a_stall_of_the_server_is_noted(rows: list[dict[str, Any]], span: str) -> None:
    made = replace(report(), timeline=rows, bucket_s=0.1)
    note = [f"no open connection ended from {span} of the run: the server stalled"] if span else []
    assert notes(made.to_dict()) == note
    slow = replace(made, latency_us=report(metrics(ms=100.0)).latency_us)
    assert notes(slow.to_dict()) == [], "a server that always takes 0.1 s does not stall"
    made.generator["stopped_s"] = 0.5
    assert len(notes(made.to_dict())) == 1, "the generator stalled"


@pytest.mark.parametrize(
    ("rows", "span"),
    [
        (timeline(9, 0, 0, 0, 0, 0, open=9), ""),
        (timeline(9, 0, 0, 0, 0, 0, open=10), "0.1 s to 0.6 s"),  # and one waits
        (timeline(9, 0, 0, 0, 0, 0, 0, 0, 0, 0, open=9), "0.6 s to 1 s"),  # the nine of others
    ],
)
def test_connections_that_are_held_are_no_stall_of_the_server(rows: list[dict[str, Any]], span: str) -> None:
    made = replace(report(plan=LoadPlan(rate=100, duration=1.0, hold=0.5)), timeline=rows, bucket_s=0.1)
    note = [f"no open connection ended from {span} of the run: the server stalled"] if span else []
    assert notes(made.to_dict()) == note

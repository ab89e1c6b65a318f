from __future__ import annotations

from greeter.loadtest import LoadPlan, LoadReport, Threshold
from greeter.loadtest.report.render import summary
from tests.loadtest.report.test_report import lagging, metrics, report


def test_a_summary_of_an_open_loop() -> None:
    m = lagging(0.1, 50)
    m.count_reason("connect_refused", "Connection refused")
    plan = LoadPlan(
        rate=100,
        duration=1.0,
        connections=20,
        workers=2,
        thresholds=[Threshold.parse("response:p99<20ms"), Threshold.parse("errors:rate<1%")],
    )
    old = report()
    found = report(m, plan, kernel={"ListenOverflows": 3}, notes=["one note"])
    text = summary(found.against(old, name="old.json"))
    assert (
        text
        == """\
Load test of 127.0.0.1:9999: open loop, 100/s, at most 20 open, 2 workers, 1 s

  rate         100/s target, 100/s achieved, 98/s greeted
  connections  100 attempted, 98 greeted, 2 failed, 0 unstarted; 5 open at most

                     min     mean      p50      p90      p95      p99    p99.9   p99.99      max
  connect           3 ms     3 ms     3 ms     3 ms     3 ms     3 ms     3 ms     3 ms     3 ms
  first byte        3 ms     3 ms     3 ms     3 ms     3 ms     3 ms     3 ms     3 ms     3 ms
  total             3 ms     3 ms     3 ms     3 ms     3 ms     3 ms     3 ms     3 ms     3 ms
  total, as due     3 ms     3 ms     3 ms     3 ms     3 ms     3 ms     3 ms     3 ms     3 ms
  failed after      1 ms     1 ms     1 ms     1 ms     1 ms     1 ms     1 ms     1 ms     1 ms

          1 connect_refused        nothing listens there, or a firewall rejects it (Connection refused)
          1 empty                  closed by the peer without sending a byte

  passed  response:p99<20ms            3 ms
  MISSED  errors:rate<1%               2%

  compared with old.json, tolerance 10 %:
  different plan: connections: 1000 then, 20 now
  different plan: workers: 1 then, 2 now
  kept    connect mean went from 3 ms to 3 ms (+0 %)
  kept    connect p50 went from 3 ms to 3 ms (+0 %)
  kept    first_byte mean went from 3 ms to 3 ms (+0 %)
  kept    first_byte p50 went from 3 ms to 3 ms (+0 %)
  kept    service mean went from 3 ms to 3 ms (+0 %)
  kept    service p50 went from 3 ms to 3 ms (+0 %)
  kept    response mean went from 3 ms to 3 ms (+0 %)
  kept    response p50 went from 3 ms to 3 ms (+0 %)
  kept    rate achieved went from 100/s to 100/s (+0 %)
  kept    rate greeted went from 98/s to 98/s (+0 %)
  kept    errors went from 2% to 2% (+0 %)

  generator    20 %, 50 % of a core; late by 100 µs at p99, 100 µs at most

  - one note
  - ListenOverflows +3 on this machine: connections that found an accept queue full

98 of 100 clients were greeted, the slowest in 3 ms; 2 failed: 1 connect_refused (Connection refused), \
1 empty. Not passed: errors:rate<1% was 2%.
"""
    )


def test_a_summary_of_a_closed_loop() -> None:
    text = summary(report(metrics(100, 0, 0), LoadPlan(connections=7)))
    assert text.startswith("Load test of 127.0.0.1:9999: closed loop, 7 at a time, 1 s\n")
    held = summary(report(metrics(100, 0, 0), LoadPlan(connections=7, hold=8.0)))
    assert held.startswith("Load test of 127.0.0.1:9999: closed loop, 7 at a time, each held for 8 s, 1 s\n")
    assert "as due" not in text
    assert "target," not in text
    assert "failed after" not in text
    assert "\n\n  generator    50 % of a core\n\n" in text
    assert text.endswith("\nAll 100 clients were greeted, the slowest in 3 ms.\n")


def test_summary_lines_fit_a_terminal() -> None:
    body = summary(report()).splitlines()
    assert max(len(line) for line in body[:-1]) <= 100


def test_a_saved_report_has_the_same_summary() -> None:
    made = report()
    assert summary(LoadReport.from_json(made.to_json())) == summary(made)

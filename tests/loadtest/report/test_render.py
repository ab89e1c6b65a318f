from __future__ import annotations

import io
import os
import re
import termios
from dataclasses import replace

import pytest

from greeter.loadtest import LoadPlan, LoadReport, Threshold
from greeter.loadtest.metrics.histogram import Histogram
from greeter.loadtest.plan.threshold import STATS
from greeter.loadtest.report.render import Style, summary
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
  connect       3 ms     3 ms     3 ms     3 ms     3 ms     3 ms     3 ms     3 ms     3 ms
  first_byte    3 ms     3 ms     3 ms     3 ms     3 ms     3 ms     3 ms     3 ms     3 ms
  service       3 ms     3 ms     3 ms     3 ms     3 ms     3 ms     3 ms     3 ms     3 ms
  response      3 ms     3 ms     3 ms     3 ms     3 ms     3 ms     3 ms     3 ms     3 ms
  failed        1 ms     1 ms     1 ms     1 ms     1 ms     1 ms     1 ms     1 ms     1 ms

          1 connect_refused        nothing listens there, or a firewall rejects it (Connection refused)
          1 empty                  closed by the peer without sending a byte, or an empty datagram

  passed  response:p99<20ms            3 ms
  MISSED  errors:rate<1%               2%

  compared with old.json, tolerance 10 %:
  different plan: connections: 1000 then, 20 now
  different plan: workers: 1 then, 2 now
                           before      now  change
  kept  connect mean         3 ms     3 ms    same
  kept  connect p50          3 ms     3 ms    same
  kept  first_byte mean      3 ms     3 ms    same
  kept  first_byte p50       3 ms     3 ms    same
  kept  service mean         3 ms     3 ms    same
  kept  service p50          3 ms     3 ms    same
  kept  response mean        3 ms     3 ms    same
  kept  response p50         3 ms     3 ms    same
  kept  rate achieved       100/s    100/s    same
  kept  rate greeted         98/s     98/s    same
  kept  errors                 2%       2%    same

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
    assert "target," not in text
    rows = [line.split()[0] for line in text.splitlines() if line.startswith("  ")]
    assert rows == ["rate", "connections", "min", "connect", "first_byte", "service", "generator", "-"]
    assert "\n\n  generator    50 % of a core\n\n" in text
    assert text.endswith("\nAll 100 clients were greeted, the slowest in 3 ms.\n")


def compared() -> LoadReport:
    """Return a report with every part that a summary can have, and long texts."""
    m = lagging(0.1, 50)
    m.count_reason("connect_refused", "Connection refused")
    for text in (b"220 mail.example ESMTP Postfix (Debian/GNU) and what else it says " + 40 * b"x", b"\n"):
        m.greetings.heads[text] += 1
    limits = [Threshold.parse(text) for text in ("response:p99<1ms", "errors:connected_no_greeting<1000000")]
    plan = LoadPlan("mail.example:25", rate=100, duration=1.0, thresholds=limits)
    found = report(m, plan, notes=["a note that is longer than a narrow terminal, with a value of 3 ms"])
    found = replace(found, target="mail.example:25", address="127.0.0.1:25, [::1]:25")
    return found.against(report(metrics(3, 0, 0, ms=0.1)), name="before-the-change/" + 20 * "x" + ".json")


def columns(width: int | None) -> list[str]:
    lines = summary(compared(), Style(width)).splitlines()
    return next(line for line in lines if line.strip().endswith("max")).split()


def test_a_narrow_table_of_latencies_drops_columns_and_never_the_maximum() -> None:
    assert columns(None) == columns(92) == [*STATS]
    assert columns(91) == ["min", "mean", "p50", "p90", "p95", "p99", "p99.9", "max"]
    assert columns(80) == ["min", "p50", "p90", "p95", "p99", "p99.9", "max"]
    assert columns(72) == ["min", "p50", "p90", "p95", "p99", "max"]
    assert columns(50) == ["p50", "p95", "p99", "max"]


@pytest.mark.parametrize("width", [120, 92, 80, 50])
def test_a_summary_fits_the_terminal(width: int) -> None:
    text = summary(compared(), Style(width))
    assert max(map(len, text.splitlines())) <= width
    words = summary(compared()).split()
    for name in ("first_byte", "connect_refused", "response:p99<1ms", "WORSE", "before-the-change"):
        assert any(name in word for word in words)
        assert name in text
    assert "a value of 3 ms" in " ".join(text.split())
    assert not any(line.startswith(("ms", "µs", "%")) for line in map(str.strip, text.splitlines()))


def test_a_comparison_has_the_worst_change_first() -> None:
    text = summary(compared())
    assert "  WORSE response p50       100 µs     3 ms     30×\n" in text
    marks = [line.split()[0] for line in text.splitlines() if line.startswith(("  WORSE", "  kept "))]
    assert marks == sorted(marks), "WORSE before kept"


def test_the_loaded_address_follows_the_target() -> None:
    assert summary(compared()).startswith("Load test of mail.example:25 at 127.0.0.1:25, [::1]:25: open loop")
    same = replace(report(), address="127.0.0.1:9999")
    assert " at 127.0.0.1" not in summary(same), "said once"


def test_a_latency_over_60_s_is_said_as_such() -> None:
    latencies = Histogram()
    latencies.record(75.0)
    most = latencies.summary()
    made = report()
    made = replace(made, latency_us={**made.latency_us, "response": most})
    row = next(line for line in summary(made).splitlines() if line.startswith("  response"))
    assert row.endswith("   > 60 s")


def test_a_greeting_without_text_is_named() -> None:
    assert "          1 × (no text)\n" in summary(compared())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_its_width_and_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "77")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Style.of(Terminal()) == Style(77, color=True)
    assert Style.of(io.StringIO()) == Style(), "a pipe"
    monkeypatch.setenv("NO_COLOR", "1")
    assert Style.of(Terminal()) == Style(77, color=False)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert Style.of(Terminal()) == Style(77, color=False)


def test_the_width_is_that_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of standard output, which may be a file while the summary goes to standard error."""
    monkeypatch.delenv("COLUMNS", raising=False)
    controller, terminal = os.openpty()
    with open(terminal, "w") as stream:
        termios.tcsetwinsize(stream, (24, 66))
        assert Style.of(stream).width == 66
        termios.tcsetwinsize(stream, (0, 0))
        assert Style.of(stream).width == 80, "unknown"
    os.close(controller)


def test_colours_add_nothing_to_the_text() -> None:
    for width in (None, 80):
        coloured = summary(compared(), Style(width, color=True))
        assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == summary(compared(), Style(width))
        assert "\x1b[1;31mMISSED\x1b[0m" in coloured
        assert "\x1b[1;31mWORSE\x1b[0m" in coloured
        assert coloured.splitlines()[-1].startswith("\x1b[1;31m")


def test_a_saved_report_has_the_same_summary() -> None:
    made = report()
    assert summary(LoadReport.from_json(made.to_json())) == summary(made)

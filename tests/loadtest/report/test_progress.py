from __future__ import annotations

import io
import re
import sys

import pytest

from greeter.errors import MissingExtra
from greeter.loadtest import LoadPlan, Snapshot
from greeter.loadtest.report.progress import (
    LineDisplay,
    LiveDisplay,
    panel,
    progress,
    remaining,
    sparkline,
    status_line,
)
from tests.loadtest.metrics.test_run_snapshot import interval


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def after(quarters: int, attempted: int = 25) -> Snapshot:
    snapshot = Snapshot()
    for number in range(quarters):
        snapshot.add(interval(number, attempted))
    return snapshot


def test_a_plain_line_every_five_seconds() -> None:
    stream = io.StringIO()
    lines = LineDisplay(LoadPlan(rate=100, duration=60.0), stream)
    snapshot = Snapshot()
    for number in range(4 * 16):
        snapshot.add(interval(number, 25))
        lines(snapshot)
    written = stream.getvalue().splitlines()
    assert [text.partition(":")[0] for text in written] == ["5 s", "10 s", "15 s"]
    assert written[0] == (
        "5 s: 500 attempted, 100/s, 500 greeted, 0 failed, 1 open, p50 1 ms, p99 1 ms, 55 s left"
    )


def test_a_gap_between_snapshots_is_one_line() -> None:
    stream = io.StringIO()
    lines = LineDisplay(LoadPlan(), stream)
    lines(after(4 * 12))
    lines(after(4 * 13))
    assert len(stream.getvalue().splitlines()) == 1


def test_quiet_shows_nothing_and_a_pipe_gets_lines() -> None:
    with progress(LoadPlan(), quiet=True, stream=Terminal()) as watcher:
        assert watcher is None
    with progress(LoadPlan(), stream=io.StringIO()) as watcher:
        assert isinstance(watcher, LineDisplay)


def test_the_default_stream_is_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(LoadPlan()) as watcher:
        assert watcher is not None
        watcher(after(20))
    assert capsys.readouterr().err.startswith("5 s: ")


def test_a_terminal_gets_a_live_panel() -> None:
    stream = Terminal()
    with progress(LoadPlan(rate=100, duration=60.0), stream=stream) as watcher:
        assert watcher is not None
        assert "0 s of 60 s" in stream.getvalue(), "the first frame comes before the first snapshot"
        watcher(after(8))
        shown = stream.getvalue()
        watcher(after(8))
        assert stream.getvalue() == shown, "no redraw without a new snapshot"
        watcher(after(9))
        assert len(stream.getvalue()) > len(shown)
    assert "100/s" in shown
    assert "58 s left" in shown
    assert "█" in shown


def test_a_panel_follows_the_width_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of the last frame that the terminal wrapped are erased as well."""
    stream, snapshots = Terminal(), iter(range(8, 99))

    def frame(columns: int) -> str:
        assert watcher is not None
        monkeypatch.setenv("COLUMNS", str(columns))
        before = len(stream.getvalue())
        watcher(after(next(snapshots)))
        return stream.getvalue()[before:]

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)  # one that is set from the beginning is final
    with progress(LoadPlan(rate=100, duration=60.0), stream=stream) as watcher:
        for columns, wrapped in ((100, 0), (50, 1), (50, 0), (120, 0), (30, 4)):
            found = frame(columns)
            bar = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", found).split("\n")[0].lstrip("\r")
            assert len(bar) == columns - 1
            assert found.count("\x1b[1A") == 3 + wrapped, "of a frame of four lines"


def test_without_rich_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.live", None)
    with pytest.raises(MissingExtra, match=r"'\.\[load\]' in greeter's source tree"):
        progress(LoadPlan(), stream=Terminal())
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(MissingExtra):
        LiveDisplay(LoadPlan(), Terminal())


def test_a_panel_has_a_bar_figures_the_p99_over_time_and_counts() -> None:
    plan = LoadPlan(rate=100, duration=60.0)
    assert panel(plan, after(120), 50) == [
        "━" * 15 + "╌" * 15 + "  50 %  30 s of 60 s",
        "100/s  1 open  0 failed  p50 1 ms  p99 1 ms",
        "p99 " + "█" * 33 + " 1 ms at most",
        "3,000 greeted of 3,000, 30 s left",
    ]
    narrow = panel(plan, after(120), 24)
    assert narrow[1:3] == ["100/s  1 open  0 failed", "p50 1 ms  p99 1 ms"]
    assert max(map(len, narrow)) <= 24
    assert panel(plan, Snapshot(), 50)[0].endswith("   0 %  0 s of 60 s")
    assert panel(plan, Snapshot(), 50)[2] == "p99 no response yet"


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (LoadPlan(count=5000), "20 %  1,000 of 5,000"),
        (LoadPlan(count=5000, duration=100.0), "20 %  1,000 of 5,000"),
        (LoadPlan(count=50_000, duration=20.0), "50 %  10 s of 20 s"),
        (LoadPlan(rate=100, count=100), "100 %  1 s of 1 s"),
    ],
)
def test_a_bar_shows_what_ends_the_run_first(plan: LoadPlan, text: str) -> None:
    assert panel(plan, after(40), 60)[0].endswith(f" {text}")


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (LoadPlan(rate=100, duration=60.0), ", 58 s left"),
        (LoadPlan(rate=100, count=500), ", 3 s left"),
        (LoadPlan(duration=10.0), ", 8 s left"),
        (LoadPlan(count=1200), ", 10 s left"),
        (LoadPlan(count=1200, duration=5.0), ", 3 s left"),
        (LoadPlan(rate=100, duration=1.5), ", waiting for open connections"),
    ],
)
def test_remaining_time(plan: LoadPlan, text: str) -> None:
    assert remaining(plan, after(8)) == text


def test_a_warm_up_is_named() -> None:
    plan = LoadPlan(rate=100, duration=60.0, warmup=5.0)
    assert panel(plan, Snapshot(), 60)[-1] == "0 greeted of 0, warming up for 5 s"
    assert panel(plan, after(8), 60)[-1].endswith(", 58 s left")


def test_remaining_time_before_the_first_snapshot() -> None:
    assert remaining(LoadPlan(count=5), Snapshot()) == ""
    assert status_line(LoadPlan(count=5), Snapshot()).endswith("p50 -, p99 -")


def test_a_sparkline_is_relative_to_its_highest() -> None:
    assert sparkline([], 10) == ""
    assert sparkline([0, 0], 10) == "▁▁"
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 10) == "▁▂▃▄▅▆▇█"
    assert sparkline([9, 9, 1, 2], 2) == "▅█"
    assert sparkline([7, None, 7], 9) == "█ █"
    assert sparkline([7], 0) == ""

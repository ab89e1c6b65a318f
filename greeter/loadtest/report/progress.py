"""Progress of a run: a live panel on a terminal, a line every few seconds elsewhere.

Invariants:

- The displays run in this process and receive snapshots. With a display, run the engine in another process
  (``load(..., isolate=True)``), so that drawing does not affect the figures.
- They write to standard error. Standard output has the results only.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from math import ceil
from typing import TYPE_CHECKING, Any, TextIO

from greeter.errors import MissingExtra
from greeter.loadtest.metrics.run_snapshot import Snapshot
from greeter.loadtest.plan.units import latency, number, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greeter.loadtest.plan.plan import LoadPlan

    Watcher = Callable[[Snapshot], None]

_LINE_INTERVAL = 5.0
_FRAME_INTERVAL = 0.2  # seconds of the run
_MIN_WIDTH = 20
_BARS = "▁▂▃▄▅▆▇█"
_DONE, _TO_DO = "━", "╌"


def progress(
    plan: LoadPlan, *, quiet: bool = False, stream: TextIO | None = None
) -> AbstractContextManager[Watcher | None]:
    """Return a context manager that shows the progress of a run.

    Args:
        plan: the plan of the run.
        quiet: show nothing.
        stream: where to write; by default, standard error.

    Returns:
        A context manager whose value is the ``on_snapshot`` argument of ``load``.

    Raises:
        MissingExtra: the stream is a terminal and rich is not installed.
    """
    stream = sys.stderr if stream is None else stream
    if quiet:
        return nullcontext()
    return LiveDisplay(plan, stream) if stream.isatty() else nullcontext(LineDisplay(plan, stream))


class LineDisplay:
    """A plain line every five seconds."""

    def __init__(self, plan: LoadPlan, stream: TextIO) -> None:
        self._plan, self._stream = plan, stream
        self._next = _LINE_INTERVAL

    def __call__(self, snapshot: Snapshot) -> None:
        if snapshot.elapsed < self._next:
            return
        self._next = snapshot.elapsed - snapshot.elapsed % _LINE_INTERVAL + _LINE_INTERVAL
        self._stream.write(status_line(self._plan, snapshot) + "\n")
        self._stream.flush()


class LiveDisplay(AbstractContextManager["Watcher | None"]):
    """A panel of a few lines: drawn at once, and again for every snapshot, at most five times a second."""

    def __init__(self, plan: LoadPlan, stream: TextIO) -> None:
        self._plan = plan
        self._drawn, self._lines, self._width = 0.0, list[str](), 0
        try:
            from rich.console import Console
            from rich.control import Control
            from rich.live import Live as RichLive
            from rich.segment import ControlType
            from rich.text import Text
        except ImportError:
            raise MissingExtra("greeter load", "load") from None
        self._text, self._control = Text, Control
        # One row up, which is erased.
        self._row_up = ((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))
        # No refresh thread: snapshots trigger the redraws.
        self._live = RichLive(console=Console(file=stream), auto_refresh=False, transient=True)

    def __enter__(self) -> Watcher:
        self._live.__enter__()
        self._draw(Snapshot())
        return self._on_snapshot

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def _on_snapshot(self, snapshot: Snapshot) -> None:
        if snapshot.elapsed < self._drawn + _FRAME_INTERVAL:
            return  # the same interval, of another worker, or a short one
        self._drawn = snapshot.elapsed
        self._draw(snapshot)

    def _draw(self, snapshot: Snapshot) -> None:
        console = self._live.console
        width = max(_MIN_WIDTH, console.width - 1)
        if width < self._width:  # terminals wrap the lines of the last frame, which then has more rows
            rows = sum(max(1, ceil(len(line) / console.width)) for line in self._lines)
            console.control(self._control(*(self._row_up * (rows - len(self._lines)))))
        self._width, self._lines = width, panel(self._plan, snapshot, width)
        text = self._text("\n".join(self._lines), no_wrap=True, overflow="crop")
        text.highlight_regex(f"{_DONE}+", "green")
        text.highlight_regex(f"{_TO_DO}+|^p99 |at most$", "dim")
        text.highlight_regex(f"[{_BARS}]+", "cyan")
        text.highlight_regex(r"[1-9][0-9,]* failed", "bold red")
        self._live.update(text, refresh=True)


def status_line(plan: LoadPlan, snapshot: Snapshot) -> str:
    """Return the progress as one line."""
    return (
        f"{seconds(snapshot.elapsed)}: {number(snapshot.attempted)} attempted, {number(snapshot.rate)}/s, "
        f"{number(snapshot.greeted)} greeted, {number(snapshot.failed)} failed, "
        f"{number(snapshot.open)} open, p50 {latency(snapshot.percentile_us(50))}, "
        f"p99 {latency(snapshot.percentile_us(99))}{remaining(plan, snapshot)}"
    )


def panel(plan: LoadPlan, snapshot: Snapshot, width: int) -> list[str]:
    """Return the progress as lines of at most ``width`` columns: a bar, figures, p99 over time, counts."""
    figures = (
        f"{number(snapshot.rate)}/s",
        f"{number(snapshot.open)} open",
        f"{number(snapshot.failed)} failed",
        f"p50 {latency(snapshot.percentile_us(50))}",
        f"p99 {latency(snapshot.percentile_us(99))}",
    )
    counts = f"{number(snapshot.greeted)} greeted of {number(snapshot.attempted)}{remaining(plan, snapshot)}"
    return [
        _progress_bar(plan, snapshot, width),
        *_packed(figures, width),
        _sparkline_of_p99(snapshot, width),
        counts[:width],
    ]


def _packed(texts: Sequence[str], width: int) -> list[str]:
    """Return texts side by side, in as many lines as they need."""
    lines = [""]
    for text in texts:
        joined = f"{lines[-1]}  {text}" if lines[-1] else text
        if len(joined) <= width or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(text)
    return lines


def _progress_bar(plan: LoadPlan, snapshot: Snapshot, width: int) -> str:
    done, text = _progress(plan, snapshot)
    label = f" {100 * done:3.0f} %  {text}"
    length = max(0, width - len(label))
    full = round(done * length)
    return (_DONE * full + _TO_DO * (length - full) + label)[:width]


def _progress(plan: LoadPlan, snapshot: Snapshot) -> tuple[float, str]:
    """Return the part of the run that is done, from 0 to 1, and its text."""
    found = []
    duration = plan.schedule[1] if plan.mode == "open" else plan.duration
    if duration is not None:
        elapsed = min(snapshot.elapsed, duration)
        found.append((elapsed / duration, f"{seconds(round(elapsed, 1))} of {seconds(duration)}"))
    if plan.mode == "closed" and plan.count is not None:
        done = min(1.0, snapshot.attempted / plan.count)
        found.append((done, f"{number(snapshot.attempted)} of {number(plan.count)}"))
    return max(found)


def _sparkline_of_p99(snapshot: Snapshot, width: int) -> str:
    """Return the p99 of the last intervals as bars, with its name and the highest of them."""
    values = snapshot.p99s_us(width)
    most = max((us for us in values if us is not None), default=None)
    label, highest = "p99 ", f" {latency(most)} at most"
    if most is None:
        return f"{label}no response yet"
    return label + sparkline(values, max(0, width - len(label) - len(highest))) + highest


def remaining(plan: LoadPlan, snapshot: Snapshot) -> str:
    """Return the estimated remaining time as text, empty if unknown."""
    if plan.warmup and not snapshot.elapsed:
        return f", warming up for {seconds(plan.warmup)}"
    left = []
    if plan.mode == "open":
        left.append(plan.schedule[1] - snapshot.elapsed)
    elif plan.duration is not None:
        left.append(plan.duration - snapshot.elapsed)
    if plan.mode == "closed" and plan.count is not None and snapshot.rate:
        left.append((plan.count - snapshot.attempted) / snapshot.rate)
    if not left:
        return ""
    return f", {seconds(round(min(left)))} left" if min(left) > 0 else ", waiting for open connections"


def sparkline(values: Sequence[float | None], width: int) -> str:
    """Return the last ``width`` values as bars, scaled to the highest of them; a space for None."""
    values = values[-width:] if width else []
    top = max((value for value in values if value is not None), default=0.0) or 1.0
    return "".join(" " if value is None else _BARS[round(value / top * (len(_BARS) - 1))] for value in values)

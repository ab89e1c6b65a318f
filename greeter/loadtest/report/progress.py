"""Progress of a run: a live panel on a terminal, a line every few seconds elsewhere.

Invariants:

- The displays run in this process and receive snapshots. With a display, run the engine in another process
  (``load(..., isolate=True)``), so that drawing does not affect the figures.
- They write to standard error. Standard output has the results only.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TextIO

from greeter.errors import MissingExtra
from greeter.loadtest.plan.units import latency, number, seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from greeter.loadtest.metrics.run_snapshot import Snapshot
    from greeter.loadtest.plan.plan import LoadPlan

    Watcher = Callable[[Snapshot], None]

_LINE_INTERVAL = 5.0
_BARS = "▁▂▃▄▅▆▇█"


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
    """A panel of three lines, redrawn for every snapshot, at most four times a second."""

    def __init__(self, plan: LoadPlan, stream: TextIO) -> None:
        self._plan = plan
        self._drawn = 0.0
        try:
            from rich.console import Console
            from rich.live import Live as RichLive
            from rich.text import Text
        except ImportError:
            raise MissingExtra("greeter load", "load") from None
        # No refresh thread: snapshots trigger the redraws.
        self._text = Text
        self._live = RichLive(console=Console(file=stream), auto_refresh=False, transient=True)

    def __enter__(self) -> Watcher:
        self._live.__enter__()
        return self._draw

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def _draw(self, snapshot: Snapshot) -> None:
        if snapshot.elapsed == self._drawn:
            return  # the same interval, of another worker
        self._drawn = snapshot.elapsed
        width = max(10, self._live.console.width - 2)
        self._live.update(self._text("\n".join(panel(self._plan, snapshot, width))), refresh=True)


def status_line(plan: LoadPlan, snapshot: Snapshot) -> str:
    """Return the progress as one line."""
    return (
        f"{seconds(snapshot.elapsed)}: {number(snapshot.attempted)} attempted, {number(snapshot.rate)}/s, "
        f"{number(snapshot.greeted)} greeted, {number(snapshot.failed)} failed, "
        f"{number(snapshot.open)} open, p50 {latency(snapshot.percentile_us(50))}, "
        f"p99 {latency(snapshot.percentile_us(99))}{remaining(plan, snapshot)}"
    )


def panel(plan: LoadPlan, snapshot: Snapshot, width: int) -> list[str]:
    """Return the progress as three lines of at most ``width`` columns."""
    return [
        f"{number(snapshot.rate)}/s  {number(snapshot.open)} open  {number(snapshot.failed)} failed  "
        f"p50 {latency(snapshot.percentile_us(50))}  p99 {latency(snapshot.percentile_us(99))}",
        sparkline(snapshot.rates, width),
        f"{number(snapshot.greeted)} greeted of {number(snapshot.attempted)} in {seconds(snapshot.elapsed)}"
        f"{remaining(plan, snapshot)}",
    ]


def remaining(plan: LoadPlan, snapshot: Snapshot) -> str:
    """Return the estimated remaining time as text, empty if unknown."""
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


def sparkline(values: list[float], width: int) -> str:
    """Return the last ``width`` values as bars, scaled to the highest of them."""
    values = values[-width:]
    top = max(values, default=0.0) or 1.0
    return "".join(_BARS[round(value / top * (len(_BARS) - 1))] for value in values)

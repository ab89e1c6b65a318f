"""A run while it goes on: a live panel on a terminal, a line every few seconds elsewhere.

The law: watching costs the one who watches. Both kinds get snapshots and draw from them in this process;
with a live panel the engine is to be in another (``load(..., isolate=True)``). They write to standard
error, so that standard output has the results alone.
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

_EVERY_SECONDS = 5.0
_BARS = "▁▂▃▄▅▆▇█"


def progress(
    plan: LoadPlan, *, quiet: bool = False, stream: TextIO | None = None
) -> AbstractContextManager[Watcher | None]:
    """What to show of a run of ``plan`` on ``stream`` (standard error): a context whose value goes to
    ``load`` as ``on_snapshot``. Raises MissingExtra on a terminal without rich."""
    stream = sys.stderr if stream is None else stream
    if quiet:
        return nullcontext()
    return Live(plan, stream) if stream.isatty() else nullcontext(Lines(plan, stream))


class Lines:
    """One plain line every five seconds."""

    def __init__(self, plan: LoadPlan, stream: TextIO) -> None:
        self._plan, self._stream = plan, stream
        self._next = _EVERY_SECONDS

    def __call__(self, snapshot: Snapshot) -> None:
        if snapshot.elapsed < self._next:
            return
        self._next = snapshot.elapsed - snapshot.elapsed % _EVERY_SECONDS + _EVERY_SECONDS
        self._stream.write(line(self._plan, snapshot) + "\n")
        self._stream.flush()


class Live(AbstractContextManager["Watcher | None"]):
    """A panel of three lines that is drawn anew with every snapshot, four times a second at the most."""

    def __init__(self, plan: LoadPlan, stream: TextIO) -> None:
        self._plan = plan
        self._drawn = 0.0
        try:
            from rich.console import Console
            from rich.live import Live as RichLive
            from rich.text import Text
        except ImportError:
            raise MissingExtra("greeter load", "load") from None
        # No refreshing thread: the snapshots are what there is to show.
        self._text = Text
        self._live = RichLive(console=Console(file=stream), auto_refresh=False, transient=True)

    def __enter__(self) -> Watcher:
        self._live.__enter__()
        return self._draw

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def _draw(self, snapshot: Snapshot) -> None:
        if snapshot.elapsed == self._drawn:
            return  # the same quarter of a second, of another worker
        self._drawn = snapshot.elapsed
        width = max(10, self._live.console.width - 2)
        self._live.update(self._text("\n".join(panel(self._plan, snapshot, width))), refresh=True)


def line(plan: LoadPlan, snapshot: Snapshot) -> str:
    """The run so far, in one line."""
    return (
        f"{seconds(snapshot.elapsed)}: {number(snapshot.attempted)} attempted, {number(snapshot.rate)}/s, "
        f"{number(snapshot.greeted)} greeted, {number(snapshot.failed)} failed, "
        f"{number(snapshot.open)} open, p50 {latency(snapshot.percentile_us(50))}, "
        f"p99 {latency(snapshot.percentile_us(99))}{remaining(plan, snapshot)}"
    )


def panel(plan: LoadPlan, snapshot: Snapshot, width: int) -> list[str]:
    """The run so far, in three lines of up to ``width`` columns."""
    return [
        f"{number(snapshot.rate)}/s  {number(snapshot.open)} open  {number(snapshot.failed)} failed  "
        f"p50 {latency(snapshot.percentile_us(50))}  p99 {latency(snapshot.percentile_us(99))}",
        sparkline(snapshot.rates, width),
        f"{number(snapshot.greeted)} greeted of {number(snapshot.attempted)} in {seconds(snapshot.elapsed)}"
        f"{remaining(plan, snapshot)}",
    ]


def remaining(plan: LoadPlan, snapshot: Snapshot) -> str:
    """How much of the run is to come, where that is known: by time, else by count."""
    left = []
    if plan.mode == "open":
        left.append(plan.schedule[1] - snapshot.elapsed)
    elif plan.duration is not None:
        left.append(plan.duration - snapshot.elapsed)
    if plan.mode == "closed" and plan.count is not None and snapshot.rate:
        left.append((plan.count - snapshot.attempted) / snapshot.rate)
    if not left:
        return ""
    return f", {seconds(round(min(left)))} left" if min(left) > 0 else ", waiting for the last"


def sparkline(values: list[float], width: int) -> str:
    """The latest ``width`` values as bars, the highest of them at full height."""
    values = values[-width:]
    top = max(values, default=0.0) or 1.0
    return "".join(_BARS[round(value / top * (len(_BARS) - 1))] for value in values)

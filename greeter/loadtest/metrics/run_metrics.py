"""The figures of one worker, and their sum over several.

Invariants:

- Figures of several workers are merged by adding. What cannot be added exactly (percentiles, rates, shares)
  is not stored, but computed for the report.
- The memory of the figures does not grow with the duration of the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from greeter.loadtest.metrics.greeting_table import GreetingTable
from greeter.loadtest.metrics.histogram import Histogram
from greeter.loadtest.metrics.timeline import Interval, Timeline, add_counts
from greeter.loadtest.plan.outcome import FAILURE_CLASSES, GREETED

if TYPE_CHECKING:
    from collections.abc import Iterable

HISTOGRAMS = ("connect", "first_byte", "service", "response", "failed", "lag")
COUNTS = (
    "unstarted",
    "unstarted_with_free_slots",
    "cut_off",
    "reset_after_greeting",
    "truncated",
    "closed_while_held",
    "peak_open",
)

# The number of distinct reasons kept for each class, because the texts of a TLS library may vary.
_MAX_REASONS = 20


@dataclass(slots=True)
class RunMetrics:
    """The figures of a run.

    Histograms:

    - ``connect``, ``first_byte``, ``service``: from the actual start of the connection.
    - ``response``: from its intended start.
    - ``failed``: from the actual start to the failure.
    - ``lag``: how late a connection with a free slot was started.

    Counts:

    - ``outcomes``: connections by class. Every class has an entry.
    - ``reasons``: for some classes, connections by the text of the error.
    - ``greetings``: connections by the text that was received, complete or not.
    - ``unstarted``: connections that were due, but not started when the schedule ended.
    - ``unstarted_with_free_slots``: those of them for which there was a slot.
    - ``cut_off``: connections that were open when the run was ``interrupted``. They are in no class.
    - ``reset_after_greeting``: greeted connections that were reset.
    - ``truncated``: greeted connections whose TLS stream ended without close_notify.
    - ``closed_while_held``: held connections that the server closed.
    - ``peak_open``: the maximum of open connections.

    Times, in seconds from the beginning of the run:

    - ``elapsed``: the last end of a connection, or ``scheduled`` if that is later.
    - ``scheduled``: the end of the schedule.
    - ``stopped``: for how long the worker did not run at all: it was stopped, or its machine was paused. The
      largest value of all workers.

    ``cpu_percent`` is the share of a core that each worker used, until the end of the schedule; in a closed
    loop until the last end of a connection, like its rate.
    """

    connect: Histogram = field(default_factory=Histogram)
    first_byte: Histogram = field(default_factory=Histogram)
    service: Histogram = field(default_factory=Histogram)
    response: Histogram = field(default_factory=Histogram)
    failed: Histogram = field(default_factory=Histogram)
    lag: Histogram = field(default_factory=Histogram)
    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys((GREETED, *FAILURE_CLASSES), 0))
    reasons: dict[str, dict[str, int]] = field(default_factory=dict)
    greetings: GreetingTable = field(default_factory=GreetingTable)
    timeline: Timeline = field(default_factory=Timeline)
    unstarted: int = 0
    unstarted_with_free_slots: int = 0
    cut_off: int = 0
    reset_after_greeting: int = 0
    truncated: int = 0
    closed_while_held: int = 0
    peak_open: int = 0
    elapsed: float = 0.0
    scheduled: float = 0.0
    stopped: float = 0.0
    cpu_percent: list[float] = field(default_factory=list)
    interrupted: bool = False

    @property
    def attempted(self) -> int:
        """The number of connections started, without those cut off."""
        return sum(self.outcomes.values())

    def count_reason(self, outcome: str, text: str) -> None:
        """Count a connection in class ``outcome`` by the text of its error."""
        reasons = self.reasons.setdefault(outcome, {})
        if text not in reasons and len(reasons) >= _MAX_REASONS:
            text = "other reasons"
        reasons[text] = reasons.get(text, 0) + 1

    def count(self, interval: Interval) -> None:
        """Count what the histograms and that of the current ``interval`` have recorded."""
        interval.response.count()
        self.greetings.bound()
        for name in HISTOGRAMS:
            getattr(self, name).count()

    def add_interval(self, interval: Interval) -> None:
        """Add an interval that has ended."""
        self.count(interval)
        self.response.add(interval.response)
        self.timeline.add(interval)
        self.peak_open = max(self.peak_open, interval.open)

    def merge(self, other: RunMetrics) -> None:
        """Add the figures of another worker of the same run."""
        for name in HISTOGRAMS:
            getattr(self, name).add(getattr(other, name))
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        add_counts(self.outcomes, other.outcomes)
        for outcome, reasons in other.reasons.items():
            add_counts(self.reasons.setdefault(outcome, {}), reasons)
        self.greetings.merge(other.greetings)
        self.timeline.merge(other.timeline)
        self.elapsed = max(self.elapsed, other.elapsed)
        self.scheduled = max(self.scheduled, other.scheduled)
        self.stopped = max(self.stopped, other.stopped)
        self.cpu_percent += other.cpu_percent
        self.interrupted = self.interrupted or other.interrupted

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON."""
        return {
            "histograms": {name: _histogram_to_json(getattr(self, name)) for name in HISTOGRAMS},
            "counts": {name: getattr(self, name) for name in COUNTS},
            "outcomes": self.outcomes,
            "reasons": self.reasons,
            "greetings": self.greetings.to_json(),
            "timeline": {"width_s": self.timeline.width, "rows": self.timeline.rows()},
            "elapsed_s": self.elapsed,
            "scheduled_s": self.scheduled,
            "stopped_s": self.stopped,
            "cpu_percent": self.cpu_percent,
            "interrupted": self.interrupted,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RunMetrics:
        """Return the figures that ``to_json`` made ``values`` from."""
        metrics = cls(
            outcomes=values["outcomes"],
            reasons=values["reasons"],
            greetings=GreetingTable.from_json(values["greetings"]),
            timeline=Timeline.from_rows(values["timeline"]["width_s"], values["timeline"]["rows"]),
            elapsed=values["elapsed_s"],
            scheduled=values["scheduled_s"],
            stopped=values["stopped_s"],
            cpu_percent=values["cpu_percent"],
            interrupted=values["interrupted"],
        )
        for name in HISTOGRAMS:
            setattr(metrics, name, _histogram_from_json(values["histograms"][name]))
        for name in COUNTS:
            setattr(metrics, name, values["counts"][name])
        return metrics


def merged(parts: Iterable[RunMetrics]) -> RunMetrics:
    """Return the sum of the figures of several workers."""
    whole = RunMetrics()
    for part in parts:
        whole.merge(part)
    return whole


def _histogram_to_json(histogram: Histogram) -> dict[str, Any]:
    return {"counts": list(histogram.counts.items()), "over": histogram.over}


def _histogram_from_json(values: dict[str, Any]) -> Histogram:
    return Histogram(dict(values["counts"]), values["over"])

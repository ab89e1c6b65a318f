"""What one worker measured, and how the parts of several become the whole.

The law: merging is adding. Whatever cannot be added exactly (a percentile, a rate, a share) is not kept
here but worked out from what is, at the end. Nothing here grows with the length of the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from greeter.loadtest.metrics.histogram import Histogram
from greeter.loadtest.metrics.timeline import Interval, Timeline
from greeter.loadtest.plan.outcome import FAILURE_CLASSES, GREETED

if TYPE_CHECKING:
    from collections.abc import Iterable

HISTOGRAMS = ("connect", "first_byte", "service", "response", "failed", "lag")
COUNTS = (
    "unstarted",
    "cut_off",
    "reset_after_greeting",
    "closed_while_held",
    "peak_open",
)

# Of each class so many different reasons are kept, should a TLS library be inventive.
_MAX_REASONS = 20


@dataclass(slots=True)
class RunMetrics:
    """The figures of a run.

    The histograms ``connect``, ``first_byte`` and ``service`` are timed from the actual connect,
    ``response`` from the intended start, ``failed`` from the actual connect to the failure; ``lag`` is how
    late connections were begun that had a free place. ``outcomes`` has every class, ``reasons`` the
    system's words for some. ``unstarted`` were due and not begun when the schedule ended; ``cut_off`` were
    open when the run was ``interrupted``, and are in no class. ``elapsed`` is seconds from the beginning to
    the last end, ``scheduled`` to the end of the schedule, and ``cpu_percent`` the share of a core that
    each worker used: until then, in a closed loop until the last end, as with its rate.
    """

    connect: Histogram = field(default_factory=Histogram)
    first_byte: Histogram = field(default_factory=Histogram)
    service: Histogram = field(default_factory=Histogram)
    response: Histogram = field(default_factory=Histogram)
    failed: Histogram = field(default_factory=Histogram)
    lag: Histogram = field(default_factory=Histogram)
    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys((GREETED, *FAILURE_CLASSES), 0))
    reasons: dict[str, dict[str, int]] = field(default_factory=dict)
    timeline: Timeline = field(default_factory=Timeline)
    unstarted: int = 0
    cut_off: int = 0
    reset_after_greeting: int = 0
    closed_while_held: int = 0
    peak_open: int = 0
    elapsed: float = 0.0
    scheduled: float = 0.0
    cpu_percent: list[float] = field(default_factory=list)
    interrupted: bool = False

    @property
    def attempted(self) -> int:
        return sum(self.outcomes.values())

    def count_reason(self, outcome: str, why: str) -> None:
        """Remember ``why`` a connection ended in ``outcome``."""
        reasons = self.reasons.setdefault(outcome, {})
        if why not in reasons and len(reasons) >= _MAX_REASONS:
            why = "other reasons"
        reasons[why] = reasons.get(why, 0) + 1

    def count(self, interval: Interval) -> None:
        """Count what the histograms have recorded, and that of the interval that is going on."""
        interval.response.count()
        for name in HISTOGRAMS:
            getattr(self, name).count()

    def add_interval(self, interval: Interval) -> None:
        """Add an interval that is over."""
        self.count(interval)
        self.response.add(interval.response)
        self.timeline.add(interval)
        self.peak_open = max(self.peak_open, interval.open)

    def merge(self, other: RunMetrics) -> None:
        """Add what another worker measured in the same run."""
        for name in HISTOGRAMS:
            getattr(self, name).add(getattr(other, name))
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for outcome, count in other.outcomes.items():
            self.outcomes[outcome] += count
        for outcome, reasons in other.reasons.items():
            mine = self.reasons.setdefault(outcome, {})
            for why, count in reasons.items():
                mine[why] = mine.get(why, 0) + count
        self.timeline.merge(other.timeline)
        self.elapsed = max(self.elapsed, other.elapsed)
        self.scheduled = max(self.scheduled, other.scheduled)
        self.cpu_percent += other.cpu_percent
        self.interrupted = self.interrupted or other.interrupted

    def to_json(self) -> dict[str, Any]:
        return {
            "histograms": {name: _histogram_to_json(getattr(self, name)) for name in HISTOGRAMS},
            "counts": {name: getattr(self, name) for name in COUNTS},
            "outcomes": self.outcomes,
            "reasons": self.reasons,
            "timeline": {"width_s": self.timeline.width, "rows": self.timeline.rows()},
            "elapsed_s": self.elapsed,
            "scheduled_s": self.scheduled,
            "cpu_percent": self.cpu_percent,
            "interrupted": self.interrupted,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RunMetrics:
        """The figures that ``to_json`` wrote."""
        metrics = cls(
            outcomes=values["outcomes"],
            reasons=values["reasons"],
            timeline=Timeline.from_rows(values["timeline"]["width_s"], values["timeline"]["rows"]),
            elapsed=values["elapsed_s"],
            scheduled=values["scheduled_s"],
            cpu_percent=values["cpu_percent"],
            interrupted=values["interrupted"],
        )
        for name in HISTOGRAMS:
            setattr(metrics, name, _histogram_from_json(values["histograms"][name]))
        for name in COUNTS:
            setattr(metrics, name, values["counts"][name])
        return metrics


def merged(parts: Iterable[RunMetrics]) -> RunMetrics:
    """The figures of all workers together."""
    whole = RunMetrics()
    for part in parts:
        whole.merge(part)
    return whole


def _histogram_to_json(histogram: Histogram) -> dict[str, Any]:
    return {"counts": list(histogram.counts.items()), "over": histogram.over}


def _histogram_from_json(values: dict[str, Any]) -> Histogram:
    return Histogram(dict(values["counts"]), values["over"])

"""One plan carried out on several machines: what each of them did, and what they did together.

The law: nothing is made up. What was counted on a machine is added exactly, and what a machine that was
lost would have added is named and left out. Clocks are compared, not trusted: a machine begins at a moment
of its own clock, and how far that clock was from ours is part of the report.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, Any

from greeter.loadtest.generator import kernel
from greeter.loadtest.metrics.run_metrics import RunMetrics, merged
from greeter.loadtest.plan.units import latency, number, seconds
from greeter.loadtest.report.report import build, part_row

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from greeter.loadtest.plan.plan import LoadPlan
    from greeter.loadtest.report.report import LoadReport


@dataclass(frozen=True)
class Clock:
    """Another machine's clocks against ours, in seconds: add ``monotonic`` to a moment of ours to get its.

    ``ahead`` is how far its time of day is ahead of ours. Either may be wrong by ``within``.
    """

    monotonic: float = 0.0
    ahead: float = 0.0
    within: float = inf

    @classmethod
    def read(cls, asked: float, heard: float, monotonic: float, here: float, there: float) -> Clock:
        """What one question tells, if its answer was written half-way: asked and heard at these moments of
        our monotonic clock; ``monotonic`` and ``there`` are the answer's clocks, ``here`` our time of day
        when it was heard. What is half-way is wrong by half the time that it took, at the most."""
        half = (heard - asked) / 2
        return cls(monotonic - asked - half, there - here + half, half)


def compared(readings: Iterable[Clock]) -> Clock:
    """The best of several readings: that of the answer that came soonest."""
    return min(readings, key=lambda clock: clock.within)


@dataclass
class Part:
    """What the worker ``name`` was to do, as number ``index`` of the plan's workers, and did.

    ``metrics`` is missing as long as it has not reported; ``lost`` says why it never will.
    ``environment`` and ``kernel`` are those of its machine, ``host``; ``heard`` is what it told last while
    it ran: seconds into the run, and connections begun.
    """

    name: str
    index: int
    host: str = ""
    clock: Clock = field(default_factory=Clock)
    environment: dict[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    heard: tuple[float, int] = (0.0, 0)
    kernel: dict[str, int] = field(default_factory=dict)
    metrics: RunMetrics | None = None
    lost: str | None = None


def assemble(plan: LoadPlan, parts: Sequence[Part], started_at: str) -> LoadReport:
    """The report on all ``parts`` of ``plan``; its ``generator["parts"]`` has a row for each.

    The run was limited by its generators if any of them was at its limit.
    """
    found = [(part, part.metrics) for part in parts if part.metrics is not None]
    rows = [_row(plan, part, started_at) for part in parts]  # before the sum, which takes the parts in
    report = build(
        plan,
        str(plan.endpoint),
        merged(metrics for _, metrics in found),
        started_at=started_at,
        kernel=_kernel(part for part, _ in found),
        environment=found[0][0].environment if found else kernel.environment(None),
        notes=[*dict.fromkeys(note for part in parts for note in part.notes), *_remarks(plan, parts, rows)],
    )
    limited = report.generator["saturated"] or any(row["saturated"] for row in rows)
    return replace(report, generator={**report.generator, "saturated": limited, "parts": rows})


def _row(plan: LoadPlan, part: Part, started_at: str) -> dict[str, Any]:
    report = build(
        plan,
        str(plan.endpoint),
        part.metrics or RunMetrics(),
        started_at=started_at,
        kernel={},
        environment=part.environment,
    )
    clock = part.clock
    known = clock.within < inf
    return {
        **part_row(part.name, report),
        "clock_ahead_us": round(clock.ahead * 1e6) if known else 0,
        "clock_within_us": round(clock.within * 1e6) if known else 0,
        "lost": part.lost,
    }


def _kernel(parts: Iterable[Part]) -> dict[str, int]:
    """The counters of every machine once, however many workers it had."""
    machines = {part.host: part.kernel for part in parts}
    total: dict[str, int] = {}
    for counters in machines.values():
        for name, count in counters.items():
            total[name] = total.get(name, 0) + count
    return total


def _remarks(plan: LoadPlan, parts: Sequence[Part], rows: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader must know about figures that were added up: first what is missing."""
    said = [
        f"worker {part.name} was lost, and with it {_share(plan, part.index)}: {part.lost}; when last heard "
        f"of, {seconds(part.heard[0])} into the run, it had begun {number(part.heard[1])} connections"
        for part in parts
        if part.lost
    ]
    for part, row in zip(parts, rows, strict=True):
        if not part.lost:
            cpu = ", ".join(f"{percent:.0f} %" for percent in row["cpu_percent"])
            said.append(
                f"worker {part.name} made {number(row['attempted'])} connections with {cpu} of a core"
                + ", and its generator was the limit" * row["saturated"]
                + ", and was interrupted" * row["interrupted"]
            )
    clocks = [part.clock for part in parts if part.clock.within < inf]
    if clocks:
        ahead = [0.0, *(clock.ahead for clock in clocks)]
        within = max(clock.within for clock in clocks)
        said.append(
            f"the clocks of master and workers were up to {latency((max(ahead) - min(ahead)) * 1e6)} apart, "
            f"to within {latency(within * 1e6)}; the run does not go by them, and began on all machines "
            "to within the latter"
        )
    return said


def _share(plan: LoadPlan, index: int) -> str:
    """The part of worker ``index`` in words."""
    if plan.mode == "closed":
        return f"{number(plan.share(index))} of {number(plan.slots)} clients"
    arrivals = plan.pacer(index).total or 0
    return f"{number(arrivals)} of {number(plan.schedule[0])} connections"

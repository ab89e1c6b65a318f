"""Combine the results of the workers of a distributed run into one report.

Invariants:

- Counts of the workers are added exactly. The load of a lost worker is named and left out, never estimated.
- Clocks of other machines are not trusted. A worker starts at a time of its own monotonic clock, which was
  compared with the master's; the report has the offset and its error bound.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, Any

from greeter.loadtest.generator import kernel
from greeter.loadtest.metrics.run_metrics import RunMetrics, merged
from greeter.loadtest.plan.units import latency, number, seconds
from greeter.loadtest.report.report import build, combined_diagnosis, join_addresses, part_row

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from greeter.loadtest.plan.plan import LoadPlan
    from greeter.loadtest.report.report import LoadReport


@dataclass(frozen=True)
class ClockReading:
    """The clocks of another machine relative to ours, in seconds.

    - ``monotonic_offset``: add it to a time of our monotonic clock to get the time of theirs.
    - ``time_offset``: how far their time of day is ahead of ours.
    - ``error_bound``: the maximum error of either.
    """

    monotonic_offset: float = 0.0
    time_offset: float = 0.0
    error_bound: float = inf

    @classmethod
    def read(
        cls, sent: float, received: float, their_monotonic: float, our_time: float, their_time: float
    ) -> ClockReading:
        """Compare the clocks from one request and its reply.

        The reply is assumed to be written half-way, which is wrong by at most half of the round trip.

        Args:
            sent: our monotonic clock when the request was sent.
            received: our monotonic clock when the reply was received.
            their_monotonic: their monotonic clock, from the reply.
            our_time: our time of day when the reply was received.
            their_time: their time of day, from the reply.
        """
        half = (received - sent) / 2
        return cls(their_monotonic - sent - half, their_time - our_time + half, half)


def best_reading(readings: Iterable[ClockReading]) -> ClockReading:
    """Return the reading with the smallest error bound, that of the fastest reply."""
    return min(readings, key=lambda reading: reading.error_bound)


@dataclass
class WorkerResult:
    """The part of a plan that one worker was assigned, and its result.

    - ``name``, ``host``: the worker and its machine.
    - ``address``: the address that it loads.
    - ``index``: its number among the workers of the plan.
    - ``clock``: the clocks of its machine.
    - ``environment``, ``kernel``: those of its machine.
    - ``notes``: sentences for the reader of the report.
    - ``progress``: its last progress report: seconds into the run, and connections started.
    - ``metrics``: None until it has reported.
    - ``lost``: why it will not report, or None.
    """

    name: str
    index: int
    host: str = ""
    clock: ClockReading = field(default_factory=ClockReading)
    environment: dict[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    progress: tuple[float, int] = (0.0, 0)
    kernel: dict[str, int] = field(default_factory=dict)
    metrics: RunMetrics | None = None
    lost: str | None = None
    address: str | None = None


def combine_results(plan: LoadPlan, results: Sequence[WorkerResult], started_at: str) -> LoadReport:
    """Return the report on all workers, with a row for each in ``generator["parts"]``.

    The run counts as saturated if the generator of any worker was.

    Args:
        plan: the plan of the whole run.
        results: the results, in the order of the workers.
        started_at: the start of the measurement.
    """
    reported = [(result, result.metrics) for result in results if result.metrics is not None]
    # The rows come first, because the sum modifies the metrics.
    rows = [_part_row(plan, result, started_at) for result in results]
    report = build(
        plan,
        str(plan.endpoint),
        merged(metrics for _, metrics in reported),
        started_at=started_at,
        address=join_addresses(result.address for result in results),
        kernel=_sum_kernel_counters(result for result, _ in reported),
        environment=reported[0][0].environment if reported else kernel.environment(None),
        notes=[
            *dict.fromkeys(note for result in results for note in result.notes),
            *_notes(plan, results, rows),
        ],
    )
    generator = {**report.generator, **combined_diagnosis(report, rows), "parts": rows}
    return replace(report, generator=generator)


def _part_row(plan: LoadPlan, result: WorkerResult, started_at: str) -> dict[str, Any]:
    report = build(
        plan,
        str(plan.endpoint),
        result.metrics or RunMetrics(),
        started_at=started_at,
        kernel={},
        environment=result.environment,
    )
    clock = result.clock
    known = clock.error_bound < inf
    return {
        **part_row(result.name, report),
        "clock_ahead_us": round(clock.time_offset * 1e6) if known else 0,
        "clock_within_us": round(clock.error_bound * 1e6) if known else 0,
        "lost": result.lost,
    }


def _sum_kernel_counters(results: Iterable[WorkerResult]) -> dict[str, int]:
    """Add the counters of all machines, each once, however many workers it had."""
    machines = {result.host: result.kernel for result in results}
    total: dict[str, int] = {}
    for counters in machines.values():
        for name, count in counters.items():
            total[name] = total.get(name, 0) + count
    return total


def _notes(plan: LoadPlan, results: Sequence[WorkerResult], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return notes on how to interpret the combined figures. Those on missing load come first."""
    notes = [
        f"worker {result.name} was lost, and with it {_share_text(plan, result.index)}: {result.lost}; its "
        f"last progress report, {seconds(result.progress[0])} into the run, counted "
        f"{number(result.progress[1])} connections"
        for result in results
        if result.lost
    ]
    for result, row in zip(results, rows, strict=True):
        if not result.lost:
            cpu = ", ".join(f"{percent:.0f} %" for percent in row["cpu_percent"])
            notes.append(
                f"worker {result.name} made {number(row['attempted'])} connections with {cpu} of a core"
                + ", and its generator was saturated" * row["saturated"]
                + ", and was interrupted" * row["interrupted"]
            )
    clocks = [result.clock for result in results if result.clock.error_bound < inf]
    if clocks:
        offsets = [0.0, *(clock.time_offset for clock in clocks)]
        apart = latency((max(offsets) - min(offsets)) * 1e6)
        error_bound = latency(max(clock.error_bound for clock in clocks) * 1e6)
        notes.append(
            f"the clocks of master and workers were up to {apart} apart, "
            f"measured to within {error_bound}; the common start was corrected for this and is as accurate"
        )
    return notes


def _share_text(plan: LoadPlan, index: int) -> str:
    """Return the share of worker ``index`` as text."""
    if plan.mode == "closed":
        return f"{number(plan.share(index))} of {number(plan.slots)} clients"
    arrivals = plan.pacer(index).total or 0
    return f"{number(arrivals)} of {number(plan.schedule[0])} connections"

"""A load test from beginning to end: look up, make room, run, read the kernel, report.

The law: the parts know nothing of each other, and here is the one place where their order is. Nothing is
printed, no signal is handled and nobody's process ends: that is up to the caller.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from greeter.loadtest.generator import kernel
from greeter.loadtest.generator.engine import Engine
from greeter.loadtest.generator.preflight import preflight
from greeter.loadtest.generator.target import resolve
from greeter.loadtest.generator.worker_pool import WorkerPool
from greeter.loadtest.metrics.histogram import import_hdrh
from greeter.loadtest.metrics.run_snapshot import Snapshot
from greeter.loadtest.report import report

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from greeter.loadtest.generator.target import Target
    from greeter.loadtest.metrics.run_metrics import RunMetrics
    from greeter.loadtest.metrics.timeline import Interval, OnInterval
    from greeter.loadtest.plan.plan import LoadPlan
    from greeter.loadtest.report.report import LoadReport


async def load(
    plan: LoadPlan,
    *,
    on_snapshot: Callable[[Snapshot], None] | None = None,
    stop: asyncio.Event | None = None,
    isolate: bool = False,
) -> LoadReport:
    """Carry out ``plan`` and report.

    - ``on_snapshot`` is called with the figures so far, four times a second (as often for each worker).
    - ``stop``: setting it ends the run; the report, marked as interrupted, is over what was measured.
    - ``isolate``: run even a single worker as a process of its own, so that what this process does
      meanwhile (a server under test, a live display) does not get into the figures. Without it, a single
      worker is the loop that this is called in.

    Resource handling: cancelling it closes every connection and ends every worker before it returns.

    Raises MissingExtra without the packages of the extra ``load``, ConfigError for a plan that cannot be
    carried out here, ConnectFailed for a target that does not resolve, and LoadWorkerFailed.
    """
    import_hdrh()
    target = await resolve(plan)
    in_process = plan.workers == 1 and not isolate
    notes = preflight(plan, target, in_process=in_process)
    local = target.local
    before = kernel.counters() if local else {}
    started_at = report.stamp(datetime.now(UTC))
    run = _in_this_loop if in_process else _in_processes
    metrics, uvloop = await run(plan, target, _interval_callback(on_snapshot), stop)
    if local:
        cores = kernel.cpu_count()
        notes.append(f"server and generator shared this machine and its {cores} core{'s' * (cores > 1)}")
    return report.build(
        plan,
        str(plan.endpoint),
        metrics,
        started_at=started_at,
        kernel=kernel.difference(before, kernel.counters()),
        environment=kernel.environment(uvloop),
        notes=notes,
    )


async def _in_this_loop(
    plan: LoadPlan, target: Target, on_interval: OnInterval | None, stop: asyncio.Event | None
) -> tuple[RunMetrics, str | None]:
    engine = Engine(plan, target, on_interval=on_interval)
    async with _calling_on_stop(stop, engine.stop):
        metrics = await engine.run()
    return metrics, kernel.uvloop_version(asyncio.get_running_loop())


async def _in_processes(
    plan: LoadPlan, target: Target, on_interval: OnInterval | None, stop: asyncio.Event | None
) -> tuple[RunMetrics, str | None]:
    async with WorkerPool(plan, target, on_interval) as workers, _calling_on_stop(stop, workers.stop):
        return await workers.run(), workers.uvloop


def _interval_callback(on_snapshot: Callable[[Snapshot], None] | None) -> OnInterval | None:
    """Add intervals up to a snapshot for ``on_snapshot``; nothing at all where nobody looks."""
    if on_snapshot is None:
        return None
    snapshot = Snapshot()

    def on_interval(interval: Interval, worker: int) -> None:
        snapshot.add(interval, worker)
        on_snapshot(snapshot)

    return on_interval


@asynccontextmanager
async def _calling_on_stop(stop: asyncio.Event | None, end: Callable[[], None]) -> AsyncIterator[None]:
    """Call ``end`` when ``stop`` is set in the meantime."""
    if stop is None:
        yield
        return

    async def watch() -> None:
        await stop.wait()
        end()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()

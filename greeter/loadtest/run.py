"""A load test from beginning to end: resolve, check limits, run, read the kernel's counters, report.

Invariants:

- The parts do not know each other. Their order is defined here only.
- ``load`` prints nothing, handles no signals and does not exit: that is up to the caller.
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
    """Run a load test.

    Resource handling: cancelling it closes all connections and ends all workers before it returns.

    Args:
        plan: what to measure.
        on_snapshot: called with the figures so far at the end of each interval of a worker: four times per
            second, in runs of less than 15 s up to 20 times.
        stop: an event that ends the run when it is set. The report is then marked as interrupted, and has the
            figures so far.
        isolate: run a single worker in its own process too, so that the work of this process (a server under
            test, a live display) does not affect the figures. By default, a single worker runs in the current
            event loop.

    Returns:
        The report.

    Raises:
        MissingExtra: the packages of the extra ``load`` are not installed.
        ConfigError: the plan exceeds the limits of this machine, or TLS cannot be set up.
        ConnectFailed: the target does not resolve.
        LoadWorkerFailed: a worker process ended without its figures.

    Example::

        report = await load(LoadPlan("127.0.0.1:9999", rate=1000, duration=10))
    """
    import_hdrh()
    target = await resolve(plan)
    in_process = plan.workers == 1 and not isolate
    notes = preflight(plan, target, in_process=in_process)
    local = target.local
    before = kernel.counters_of(datagrams=plan.datagrams) if local else {}
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
        address=target.text,
        kernel=kernel.difference(before, kernel.counters_of(datagrams=plan.datagrams)),
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
    """Return a callback that adds intervals to a snapshot for ``on_snapshot``; None without one."""
    if on_snapshot is None:
        return None
    snapshot = Snapshot()

    def on_interval(interval: Interval, worker: int) -> None:
        snapshot.add(interval, worker)
        on_snapshot(snapshot)

    return on_interval


@asynccontextmanager
async def _calling_on_stop(stop: asyncio.Event | None, callback: Callable[[], None]) -> AsyncIterator[None]:
    """Call ``callback`` if ``stop`` is set within the context."""
    if stop is None:
        yield
        return

    async def watch() -> None:
        await stop.wait()
        callback()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()

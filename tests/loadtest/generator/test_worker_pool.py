from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from greeter.loadtest import LoadPlan
from greeter.loadtest.generator.target import resolve
from greeter.loadtest.generator.worker_pool import LoadWorkerFailed, WorkerPool
from greeter.loadtest.plan.outcome import GREETED
from tests.conftest import one_loop
from tests.support.loadtest_peers import (
    greet,
    serving,
    serving_and_counting,
    wait_for_clients,
    wait_for_close,
)

if TYPE_CHECKING:
    from greeter.loadtest.metrics.timeline import Interval

pytestmark = one_loop


def pids(workers: WorkerPool) -> list[int]:
    return [process.pid for process in workers._processes]


async def test_workers_share_the_load_and_their_figures_are_added() -> None:
    attempted: dict[int, int] = {0: 0, 1: 0, 2: 0}

    def on_interval(interval: Interval, worker: int) -> None:
        attempted[worker] += interval.attempted

    async with serving(greet) as target:
        plan = LoadPlan(target, rate=200, count=101, connections=9, workers=3)
        async with WorkerPool(plan, await resolve(plan), on_interval) as workers:
            began = time.monotonic()
            metrics = await workers.run()
            took = time.monotonic() - began
    assert metrics.attempted + metrics.unstarted == 101
    assert metrics.outcomes[GREETED] == metrics.attempted
    assert sum(attempted.values()) == metrics.attempted
    assert sorted(attempted.values()) == [33, 34, 34] or metrics.unstarted, "fewer only if a worker was late"
    assert len(metrics.cpu_percent) == 3
    assert 0.5049 < metrics.scheduled < took, "not the sum of their schedules, which is 1.5 s"


async def test_a_worker_that_is_killed_fails_the_run_and_ends_the_others() -> None:
    async with serving(wait_for_close) as target:
        plan = LoadPlan(target, duration=60.0, connections=4, workers=2)
        async with WorkerPool(plan, await resolve(plan)) as workers:
            running = asyncio.ensure_future(workers.run())
            os.kill(pids(workers)[1], signal.SIGKILL)
            with pytest.raises(LoadWorkerFailed, match="worker 1 exited with status -9 before") as caught:
                await running
        assert (caught.value.index, caught.value.status) == (1, -9)
        for pid in pids(workers):
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


async def test_stopped_workers_report_the_figures_so_far() -> None:
    async with serving_and_counting(wait_for_close) as (target, accepted):
        plan = LoadPlan(target, duration=60.0, connections=4, workers=2)
        async with WorkerPool(plan, await resolve(plan)) as workers:
            running = asyncio.ensure_future(workers.run())
            await wait_for_clients(accepted, 4)
            workers.stop()
            metrics = await running
    assert metrics.interrupted
    assert metrics.cut_off == 4


async def test_a_worker_that_does_not_start_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greeter.loadtest.generator.worker_pool._WORKER_COMMAND", ("false",))
    plan = LoadPlan(connections=4, workers=2)
    with pytest.raises(LoadWorkerFailed, match="load worker 0 exited with status 1"):
        async with WorkerPool(plan, await resolve(plan)):
            pass

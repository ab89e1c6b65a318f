"""A worker process, spoken to as its parent does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from greeter.loadtest import LoadPlan
from greeter.loadtest.generator.target import Target
from greeter.loadtest.metrics.run_metrics import RunMetrics
from greeter.loadtest.plan.outcome import GREETED
from tests.conftest import PATIENCE
from tests.support.loadtest_peers import (
    greet,
    serving,
    serving_and_counting,
    wait_for_clients,
    wait_for_close,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Parent:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    def say(self, message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")

    async def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = await self.process.stdout.readline()
        message: dict[str, Any] = json.loads(line)
        return message


@contextlib.asynccontextmanager
async def worker(target: str, *, intervals: bool = False, **options: Any) -> AsyncIterator[Parent]:
    """A worker that is ready to begin."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "greeter.loadtest.generator.worker_main",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=2**24,
    )  # fmt: skip
    parent = Parent(process)
    plan = LoadPlan(target, **options)
    host, _, port = target.rpartition(":")
    parent.say(
        {
            "plan": plan.to_dict(),
            "target": Target(socket.AF_INET, (host, int(port))).to_json(),
            "index": 0,
            "intervals": intervals,
        }
    )
    try:
        assert "ready" in await parent.hear()
        yield parent
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.communicate()


async def test_it_begins_when_it_is_told_and_reports() -> None:
    async with serving(greet) as target, worker(target, rate=100, count=20, intervals=True) as parent:
        begin = time.monotonic() + 0.1
        parent.say({"begin": begin})
        message = await parent.hear()
        told = 0
        while "interval" in message:
            told += message["interval"][1]
            message = await parent.hear()
        assert time.monotonic() >= begin + 0.19
        metrics = RunMetrics.from_json(message["metrics"])
        assert metrics.outcomes[GREETED] == told == 20 - metrics.unstarted
        assert await parent.process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_interrupts_are_for_the_parent_and_stop_is_a_line(number: signal.Signals) -> None:
    async with (
        serving_and_counting(wait_for_close) as (target, accepted),
        worker(target, duration=60.0, connections=3) as parent,
    ):
        os.kill(parent.process.pid, number)
        parent.say({"begin": time.monotonic()})
        await wait_for_clients(accepted, 3)
        os.kill(parent.process.pid, number)
        parent.say({"stop": True})
        metrics = RunMetrics.from_json((await parent.hear())["metrics"])
        assert metrics.interrupted
        assert metrics.cut_off == 3
        assert await parent.process.wait() == 0


async def test_without_its_parent_it_ends() -> None:
    async with serving(wait_for_close) as target:
        async with worker(target, duration=60.0) as parent:
            assert parent.process.stdin is not None
            parent.say({"begin": time.monotonic()})
            parent.process.stdin.close()
            async with asyncio.timeout(PATIENCE):
                assert await parent.process.wait() == 0
        async with worker(target, duration=60.0) as parent:
            assert parent.process.stdin is not None
            parent.process.stdin.close()
            async with asyncio.timeout(PATIENCE):
                assert await parent.process.wait() == 0


async def told(plan: LoadPlan) -> dict[str, Any]:
    """What a worker says to a job without an address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "greeter.loadtest.generator.worker_main",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    job = {"plan": plan.to_dict(), "target": None, "index": 0, "intervals": False}
    async with asyncio.timeout(PATIENCE):
        out, _ = await process.communicate(json.dumps(job).encode() + b"\n")
    assert process.returncode == 0
    message: dict[str, Any] = json.loads(out)
    return message


async def test_on_a_machine_of_its_own_it_looks_the_target_up_itself() -> None:
    ready = await told(LoadPlan("127.0.0.1:1", rate=10, duration=1.0))
    assert "ready" in ready
    assert ready["local"] is True
    assert ready["notes"] == []
    unknown = await told(LoadPlan("nobody.invalid:1"))
    assert unknown["error"].startswith("cannot connect to nobody.invalid:1: ")
    assert unknown["usage"] is False
    too_many = await told(LoadPlan(connections=2_000_000_000))
    assert "connections do not fit" in too_many["error"]
    assert too_many["usage"] is True

"""A worker process, controlled as its parent does."""

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
    """The parent's end of the pipes of a worker."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    def send(self, message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")

    async def recv(self) -> dict[str, Any]:
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
    parent.send(
        {
            "plan": plan.to_dict(),
            "target": Target(socket.AF_INET, (host, int(port))).to_json(),
            "index": 0,
            "intervals": intervals,
        }
    )
    try:
        assert "ready" in await parent.recv()
        yield parent
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.communicate()


async def test_a_worker_begins_on_time_and_reports() -> None:
    async with serving(greet) as target, worker(target, rate=100, count=20, intervals=True) as parent:
        begin = time.monotonic() + 0.1
        parent.send({"begin": begin})
        message = await parent.recv()
        attempted = 0
        while "interval" in message:
            attempted += message["interval"][1]
            message = await parent.recv()
        assert time.monotonic() >= begin + 0.19
        metrics = RunMetrics.from_json(message["metrics"])
        assert metrics.outcomes[GREETED] == attempted == 20 - metrics.unstarted
        assert await parent.process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_worker_ignores_signals_and_obeys_stop(number: signal.Signals) -> None:
    async with (
        serving_and_counting(wait_for_close) as (target, accepted),
        worker(target, duration=60.0, connections=3) as parent,
    ):
        os.kill(parent.process.pid, number)
        parent.send({"begin": time.monotonic()})
        await wait_for_clients(accepted, 3)
        os.kill(parent.process.pid, number)
        parent.send({"stop": True})
        metrics = RunMetrics.from_json((await parent.recv())["metrics"])
        assert metrics.interrupted
        assert metrics.cut_off == 3
        assert await parent.process.wait() == 0


async def test_a_worker_ends_when_its_input_ends() -> None:
    async with serving(wait_for_close) as target:
        async with worker(target, duration=60.0) as parent:
            assert parent.process.stdin is not None
            parent.send({"begin": time.monotonic()})
            parent.process.stdin.close()
            async with asyncio.timeout(PATIENCE):
                assert await parent.process.wait() == 0
        async with worker(target, duration=60.0) as parent:
            assert parent.process.stdin is not None
            parent.process.stdin.close()
            async with asyncio.timeout(PATIENCE):
                assert await parent.process.wait() == 0


async def first_message(plan: LoadPlan) -> dict[str, Any]:
    """Return the first message of a worker whose job has no target."""
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


async def test_a_worker_without_a_target_needs_ports_for_its_own_share() -> None:
    """The others may run on other machines: more connections than one machine has ports are fine."""
    plan = LoadPlan("127.0.0.1:1", connections=128_000, hold=1.0, workers=128)
    assert "ready" in await first_message(plan)


async def test_a_worker_without_a_target_resolves_it() -> None:
    ready = await first_message(LoadPlan("127.0.0.1:1", rate=10, duration=1.0))
    assert "ready" in ready
    assert ready["local"] is True
    assert ready["notes"] == []
    unknown = await first_message(LoadPlan("no-such-host.invalid:1"))
    assert unknown["error"].startswith("cannot connect to no-such-host.invalid:1: ")
    assert unknown["usage"] is False
    too_many = await first_message(LoadPlan(connections=2_000_000_000))
    assert "connections do not fit" in too_many["error"]
    assert too_many["usage"] is True

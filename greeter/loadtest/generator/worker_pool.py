"""Worker processes: start and stop them together, and add up their figures.

Invariants:

- A run is complete or fails. If a worker ends without its figures, the run raises LoadWorkerFailed.
- No worker process outlives the pool.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from greeter.errors import GreeterError
from greeter.loadtest.metrics.run_metrics import RunMetrics, merged
from greeter.loadtest.metrics.timeline import Interval

if TYPE_CHECKING:
    from greeter.loadtest.generator.target import Target
    from greeter.loadtest.metrics.timeline import OnInterval
    from greeter.loadtest.plan.plan import LoadPlan

# From the last worker being ready to the common beginning: the command must reach all workers.
_START_DELAY = 0.05
_WORKER_COMMAND = (sys.executable, "-P", "-m", "greeter.loadtest.generator.worker_main")
_MAX_LINE_BYTES = 2**28


def worker_command() -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the command line of a worker process, and its environment.

    The worker imports from the same paths as this process, and not from the working directory.
    """
    return _WORKER_COMMAND, {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


class LoadWorkerFailed(GreeterError):
    """A worker process ended without its figures.

    ``index`` is its number, from 0. ``status`` is its exit status, negative for a signal.
    """

    def __init__(self, index: int, status: int) -> None:
        super().__init__(f"load worker {index} exited with status {status} before it reported")
        self.index, self.status = index, status


class WorkerPool:
    """The worker processes of a plan, as an asynchronous context manager.

    Entering it starts the workers and waits until they are ready; leaving it kills those that still run.
    ``uvloop`` is the version of uvloop that they use, or None.

    Args:
        plan: the plan to run.
        target: its resolved target.
        on_interval: called with each Interval of a worker as it ends, and the number of the worker.
    """

    def __init__(
        self,
        plan: LoadPlan,
        target: Target,
        on_interval: OnInterval | None = None,
    ) -> None:
        self.uvloop: str | None = None
        self._plan, self._target, self._on_interval = plan, target, on_interval
        self._processes: list[Process] = []

    async def __aenter__(self) -> WorkerPool:
        try:
            for index in range(self._plan.workers):
                self._processes.append(await self._start(index))
            for index in range(self._plan.workers):
                self.uvloop = (await self._recv(index))["ready"]
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.kill()
        for process in self._processes:
            await process.wait()

    async def run(self) -> RunMetrics:
        """Run the plan.

        Returns:
            The sum of the figures of all workers.

        Raises:
            LoadWorkerFailed: a worker ended without its figures.
        """
        begin = time.monotonic() + _START_DELAY
        for process in self._processes:
            _send(process, {"begin": begin})
        return merged(await asyncio.gather(*map(self._follow, range(len(self._processes)))))

    def stop(self) -> None:
        """End the run now. The workers report the figures so far."""
        for process in self._processes:
            _send(process, {"stop": True})

    async def _start(self, index: int) -> Process:
        command, environment = worker_command()
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, limit=_MAX_LINE_BYTES, env=environment
        )
        job = {
            "plan": self._plan.to_dict(),
            "target": self._target.to_json(),
            "index": index,
            "intervals": self._on_interval is not None,
        }
        _send(process, job)
        return process

    async def _follow(self, index: int) -> RunMetrics:
        while True:
            message = await self._recv(index)
            if "metrics" in message:
                return RunMetrics.from_json(message["metrics"])
            if self._on_interval is not None:
                self._on_interval(Interval.from_json(message["interval"]), index)

    async def _recv(self, index: int) -> dict[str, Any]:
        process = self._processes[index]
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line.endswith(b"\n"):
            raise LoadWorkerFailed(index, await process.wait())
        message: dict[str, Any] = json.loads(line)
        return message


def _send(process: Process, message: dict[str, Any]) -> None:
    """Send a line. If the worker has ended, it is dropped; ``_recv`` reports the end."""
    assert process.stdin is not None
    with suppress(RuntimeError):  # uvloop raises it for a closed pipe
        process.stdin.write(json.dumps(message).encode() + b"\n")

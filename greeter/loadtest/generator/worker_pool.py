"""Several worker processes as one: started together, stopped together, their figures added up.

The law: a run is whole or it is an error. Every worker reports, or the run fails with the name and the
end of the one that did not; and none of them outlives it.
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

# From "all are ready" to the common beginning: for the word to reach all of them.
_START_DELAY = 0.05
_WORKER_COMMAND = (sys.executable, "-P", "-m", "greeter.loadtest.generator.worker_main")
_MAX_LINE_BYTES = 2**28


def worker_command() -> tuple[tuple[str, ...], dict[str, str]]:
    """The command that starts a worker process, and its environment.

    It finds what this process finds, and no module that lies in the working directory.
    """
    return _WORKER_COMMAND, {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


class LoadWorkerFailed(GreeterError):
    """A worker process ended without its figures. ``index`` is its number, ``status`` its exit status."""

    def __init__(self, index: int, status: int) -> None:
        super().__init__(f"load worker {index} ended with status {status} before it reported")
        self.index, self.status = index, status


class WorkerPool:
    """The worker processes of a plan, as an asynchronous context: on leaving it, they are gone."""

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
        """Begin together; returns the figures of all when all have reported. Raises LoadWorkerFailed."""
        begin = time.monotonic() + _START_DELAY
        for process in self._processes:
            _send(process, {"begin": begin})
        return merged(await asyncio.gather(*map(self._follow, range(len(self._processes)))))

    def stop(self) -> None:
        """End the run now; the workers report what they have."""
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
    """Send one line; to a worker that is gone already it is lost, which its silence tells."""
    assert process.stdin is not None
    with suppress(RuntimeError):  # uvloop's word for a pipe that is closed
        process.stdin.write(json.dumps(message).encode() + b"\n")

"""The Locust master of a load test: it commands the workers and combines their results into a report.

Invariants:

- A run starts on all workers at the same time, after all are ready.
- A failure before the start results in an error line and no report. A failure after the start is part of
  the report, which is always made.
"""

from __future__ import annotations

import itertools
import logging
import sys
import time
from datetime import UTC, datetime, timedelta
from math import inf
from typing import TYPE_CHECKING, Any

import gevent  # type: ignore[import-untyped]  # gevent has no types
from gevent.event import AsyncResult, Event  # type: ignore[import-untyped]  # gevent has no types
from locust.runners import STATE_MISSING, MasterRunner

from greeter import __version__
from greeter.errors import ConfigError, GreeterError
from greeter.loadtest.distributed.locust_worker import COMMAND, REPLY, RESULT
from greeter.loadtest.distributed.results import ClockReading, WorkerResult, best_reading, combine_results
from greeter.loadtest.metrics.run_metrics import RunMetrics
from greeter.loadtest.report.report import stamp

if TYPE_CHECKING:
    from collections.abc import Callable

    from locust.env import Environment

    from greeter.loadtest.plan.plan import LoadPlan
    from greeter.loadtest.report.report import LoadReport

# Seconds for a worker to reply. To prepare, it starts a process and resolves the target.
_REPLY_TIMEOUT = 30.0
# Seconds for the workers to report after the stop command.
_STOP_TIMEOUT = 15.0
# Seconds from the readiness of all workers to the common start, in addition to the time of the command.
_START_DELAY = 0.1
# Requests per clock; the one with the shortest round trip counts.
_CLOCK_READINGS = 5

_NO_REPLY = f"worker {{}} did not reply within {_REPLY_TIMEOUT:g} s: it has ended, or has no GreeterUser"

logger = logging.getLogger("greeter")


class LocustMaster:
    """Runs the load test whenever Locust starts a test. Without a web page, Locust ends with the run.

    Locust's exit code is that of ``publish``, 2 if the plan or a worker is invalid before the start, and 1
    for other errors.

    Args:
        environment: Locust's environment.
        runner: Locust's runner.
        plan: returns the plan for a number of workers; may raise ConfigError.
        publish: prints and writes the report, and returns the exit code.
    """

    def __init__(
        self,
        environment: Environment,
        runner: Any,
        plan: Callable[[int], LoadPlan],
        publish: Callable[[LoadReport], int],
    ) -> None:
        self._environment, self._runner = environment, runner
        self._plan, self._publish = plan, publish
        self._numbers = itertools.count()
        self._run = -1
        self._pending: dict[int, AsyncResult[dict[str, Any]]] = {}
        self._results: dict[str, WorkerResult] = {}
        self._result_received, self._finished = Event(), Event()
        self._finished.set()
        self._quitting = False
        runner.register_message(REPLY, lambda msg, **_: self._on_reply(msg.data))
        hooks: Any = environment.events  # Locust has no types for them
        hooks.test_start.add_listener(lambda **_: self._start())
        hooks.worker_report.add_listener(lambda client_id, data, **_: self._on_result(client_id, data))
        hooks.quitting.add_listener(lambda **_: self._on_quitting())

    # -- a run from start to end

    def _start(self) -> None:
        if self._finished.is_set():
            self._finished.clear()
            gevent.spawn(self._run_test)

    def _run_test(self) -> None:
        self._run = next(self._numbers)
        self._results = {name: WorkerResult(name, index) for index, name in enumerate(self._workers())}
        code = 1  # of an unexpected error, whose traceback Locust shows
        try:
            code = self._publish(self._execute(self._plan(len(self._results))))
        except GreeterError as error:
            logger.error("%s", error)
            code = 2 if isinstance(error, ConfigError) else 1
        finally:
            self._environment.process_exit_code = 130 if self._quitting else code
            self._finished.set()
            if not self._quitting:
                self._end_test()

    def _end_test(self) -> None:
        options = self._environment.parsed_options
        if options is None or options.headless:
            self._runner.quit()
        else:
            self._runner.stop()

    def _execute(self, plan: LoadPlan) -> LoadReport:
        assignment = {"version": __version__, "run": self._run, "plan": plan.to_dict()}
        # Prepare all workers at the same time.
        preparing = [gevent.spawn(self._try_prepare, result, assignment) for result in self._results.values()]
        for error in (greenlet.get() for greenlet in preparing):
            if error is not None:
                raise error
        # Compare the clocks and agree on a start.
        for result in self._results.values():
            result.clock = best_reading(self._read_clock(result.name) for _ in range(_CLOCK_READINGS))
        delay = _START_DELAY + 2 * max(result.clock.error_bound for result in self._results.values())
        begin = time.monotonic() + delay
        started_at = datetime.now(UTC) + timedelta(seconds=delay + plan.warmup)
        # Start all workers. One that fails now is lost, and the others go on.
        begun = [
            (result, self._command(result.name, "begin", start_time=begin + result.clock.monotonic_offset))
            for result in self._results.values()
        ]
        for result, reply in begun:
            try:
                self._recv(result.name, reply)
            except GreeterError as error:
                result.lost = str(error)
        self._wait_for_results(begin + _max_duration(plan) + _REPLY_TIMEOUT)
        return combine_results(plan, list(self._results.values()), stamp(started_at))

    def _try_prepare(self, result: WorkerResult, assignment: dict[str, Any]) -> GreeterError | None:
        """Return the error, if any: gevent prints the traceback of an exception in a greenlet."""
        try:
            self._prepare(result, assignment)
        except GreeterError as error:
            return error
        return None

    def _prepare(self, result: WorkerResult, assignment: dict[str, Any]) -> None:
        # Locust counts a worker as ready shortly before it handles messages; earlier messages are lost.
        end = time.monotonic() + _REPLY_TIMEOUT
        while not self._command(result.name, "clock").wait(timeout=1.0):
            if time.monotonic() > end:
                raise GreeterError(_NO_REPLY.format(result.name))
        reply = self._call(result.name, "prepare", index=result.index, **assignment)
        result.host, result.address = reply["host"], reply["address"]
        result.notes, result.environment = reply["notes"], reply["environment"]

    def _read_clock(self, name: str) -> ClockReading:
        sent = time.monotonic()
        reply = self._call(name, "clock")
        return ClockReading.read(sent, time.monotonic(), reply["monotonic"], time.time(), reply["time"])

    def _wait_for_results(self, deadline: float) -> None:
        """Wait for the results that can still arrive; mark the other workers as lost."""
        while waiting := [
            result for result in self._results.values() if result.metrics is None and not result.lost
        ]:
            reasons = {result.name: self._absence_reason(result.name) for result in waiting}
            if time.monotonic() > deadline:
                reasons = {name: reason or "it did not report in time" for name, reason in reasons.items()}
            # A worker without heartbeat may recover, as long as another one is still awaited.
            if all(reasons.values()):
                for result in waiting:
                    result.lost = reasons[result.name]
            self._result_received.wait(0.5)  # Locust has no event for a missing heartbeat
            self._result_received.clear()

    # -- the workers

    def _workers(self) -> list[str]:
        if not isinstance(self._runner, MasterRunner):
            return ["local"]
        clients = self._runner.clients
        return [node.id for node in (*clients.ready, *clients.spawning, *clients.running)]

    def _absence_reason(self, name: str) -> str | None:
        if not isinstance(self._runner, MasterRunner):
            return None
        node = self._runner.clients.get(name)
        if node is None:
            return "it disconnected"
        return "it sends no heartbeat" if node.state == STATE_MISSING else None

    def _command(self, name: str, command: str, **values: Any) -> AsyncResult[dict[str, Any]]:
        number = next(self._numbers)
        self._pending[number] = reply = AsyncResult()
        self._runner.send_message(COMMAND, {"id": number, "command": command, **values}, name)
        return reply

    def _call(self, name: str, command: str, **values: Any) -> dict[str, Any]:
        return self._recv(name, self._command(name, command, **values))

    def _recv(self, name: str, pending: AsyncResult[dict[str, Any]]) -> dict[str, Any]:
        """Wait for a reply and return it. Raises ConfigError or GreeterError for an error or a timeout."""
        try:
            reply: dict[str, Any] = pending.get(timeout=_REPLY_TIMEOUT)
        except gevent.Timeout:
            raise GreeterError(_NO_REPLY.format(name)) from None
        if "error" in reply:
            kind = ConfigError if reply["usage"] else GreeterError
            raise kind(f"worker {name} cannot take part: {reply['error']}")
        return reply

    def _on_reply(self, reply: dict[str, Any]) -> None:
        if reply["id"] in self._pending:
            self._pending.pop(reply["id"]).set(reply)

    def _on_result(self, name: str, data: dict[str, Any]) -> None:
        report, result = data.get(RESULT) or {}, self._results.get(name)
        if result is None or report.get("run") != self._run or result.metrics is not None:
            return
        result.progress = tuple(report.get("progress", result.progress))
        if "metrics" in report:
            result.metrics, result.kernel = RunMetrics.from_json(report["metrics"]), report["kernel"]
        result.lost = report.get("lost", result.lost)
        self._result_received.set()

    def _on_quitting(self) -> None:
        """Stop a run and wait for its report, when Locust ends by Ctrl-C or a signal."""
        if not self._finished.is_set():
            self._quitting = True
            for name in self._results:
                self._command(name, "stop")
            if not self._finished.wait(_STOP_TIMEOUT):
                logger.error("interrupted, and the workers did not report in time: no report")
                self._environment.process_exit_code = 130


def _max_duration(plan: LoadPlan) -> float:
    """Return the seconds after which every worker must have finished ``plan``."""
    length = plan.schedule[1] if plan.mode == "open" else plan.duration
    return plan.warmup + (inf if length is None else length) + plan.hold + plan.timeout


def print_result(text: str) -> None:
    """Print a result to standard output; Locust logs to standard error."""
    sys.stdout.write(text)
    sys.stdout.flush()

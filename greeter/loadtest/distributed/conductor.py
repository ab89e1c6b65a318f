"""A Locust master's part of a load test: it orders the workers about, adds up what they report, and judges.

The law: a run begins when every worker is ready, at one moment, and ends with a report, whatever becomes of
the workers. What goes wrong before it begins is one line and no report; what goes wrong later is in it.
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
from greeter.loadtest.distributed.fleet import Clock, Part, assemble, compared
from greeter.loadtest.distributed.station import ANSWER, ORDER, RESULT
from greeter.loadtest.metrics.run_metrics import RunMetrics
from greeter.loadtest.report.report import stamp

if TYPE_CHECKING:
    from collections.abc import Callable

    from locust.env import Environment

    from greeter.loadtest.plan.plan import LoadPlan
    from greeter.loadtest.report.report import LoadReport

# For a worker to answer; to prepare takes it the start of a process and a look-up.
_PATIENCE_SECONDS = 30.0
# For the workers to report once they were told to stop.
_LAST_PATIENCE_SECONDS = 15.0
# From "all are ready" to the common beginning, beside the way of the order.
_LEAD_SECONDS = 0.1
# A clock is asked so often, for a short way there and back.
_READINGS = 5

_SILENT = f"worker {{}} did not answer within {_PATIENCE_SECONDS:g} s: it is gone, or has no GreeterUser"

logger = logging.getLogger("greeter")


class Conductor:
    """Carries out ``plan(workers)`` whenever Locust starts a test, and hands the report to ``publish``, which
    returns the exit code.

    That is the exit code of Locust too; 2 for what is wrong with the plan or the workers before the
    run begins, and 1 for what else fails. Without a web page, Locust ends with the run.
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
        self._asked: dict[int, AsyncResult[dict[str, Any]]] = {}
        self._parts: dict[str, Part] = {}
        self._news, self._over = Event(), Event()
        self._over.set()
        self._leaving = False
        runner.register_message(ANSWER, lambda msg, **_: self._answered(msg.data))
        hooks: Any = environment.events  # Locust has no types for them
        hooks.test_start.add_listener(lambda **_: self._start())
        hooks.worker_report.add_listener(lambda client_id, data, **_: self._reported(client_id, data))
        hooks.quitting.add_listener(lambda **_: self._leave())

    # -- a run from beginning to end

    def _start(self) -> None:
        if self._over.is_set():
            self._over.clear()
            gevent.spawn(self._conduct)

    def _conduct(self) -> None:
        self._run = next(self._numbers)
        self._parts = {name: Part(name, index) for index, name in enumerate(self._workers())}
        code = 1  # of an error that nobody thought of, whose traceback Locust shows
        try:
            code = self._publish(self._carry_out(self._plan(len(self._parts))))
        except GreeterError as error:
            logger.error("%s", error)
            code = 2 if isinstance(error, ConfigError) else 1
        finally:
            self._environment.process_exit_code = 130 if self._leaving else code
            self._over.set()
            if not self._leaving:
                self._end()

    def _end(self) -> None:
        options = self._environment.parsed_options
        if options is None or options.headless:
            self._runner.quit()
        else:
            self._runner.stop()

    def _carry_out(self, plan: LoadPlan) -> LoadReport:
        job = {"version": __version__, "run": self._run, "plan": plan.to_dict()}
        preparing = [gevent.spawn(self._prepared, part, job) for part in self._parts.values()]
        for error in (greenlet.get() for greenlet in preparing):
            if error is not None:
                raise error
        for part in self._parts.values():
            part.clock = compared(self._ask_clock(part.name) for _ in range(_READINGS))
        lead = _LEAD_SECONDS + 2 * max(part.clock.within for part in self._parts.values())
        begin = time.monotonic() + lead
        started_at = datetime.now(UTC) + timedelta(seconds=lead + plan.warmup)
        ordered = [
            (part, self._order(part.name, "begin", moment=begin + part.clock.monotonic))
            for part in self._parts.values()
        ]
        for part, answer in ordered:
            try:
                self._hear(part.name, answer)
            except GreeterError as error:
                part.lost = str(error)
        self._wait_for_reports(begin + _longest(plan) + _PATIENCE_SECONDS)
        return assemble(plan, list(self._parts.values()), stamp(started_at))

    def _prepared(self, part: Part, job: dict[str, Any]) -> GreeterError | None:
        """Why the worker cannot take part. What a greenlet raises, gevent would show as a traceback."""
        try:
            self._prepare(part, job)
        except GreeterError as error:
            return error
        return None

    def _prepare(self, part: Part, job: dict[str, Any]) -> None:
        # Locust counts a worker as ready a little before that can be spoken to: what is said then is lost.
        end = time.monotonic() + _PATIENCE_SECONDS
        while not self._order(part.name, "clock").wait(timeout=1.0):
            if time.monotonic() > end:
                raise GreeterError(_SILENT.format(part.name))
        answer = self._ask(part.name, "prepare", index=part.index, **job)
        part.host, part.notes, part.environment = answer["host"], answer["notes"], answer["environment"]

    def _ask_clock(self, name: str) -> Clock:
        asked = time.monotonic()
        answer = self._ask(name, "clock")
        return Clock.read(asked, time.monotonic(), answer["monotonic"], time.time(), answer["time"])

    def _wait_for_reports(self, deadline: float) -> None:
        """Wait for every part that can still come; say of the others why they do not."""
        while waiting := [part for part in self._parts.values() if part.metrics is None and not part.lost]:
            why = {part.name: self._gone(part.name) for part in waiting}
            if time.monotonic() > deadline:
                why = {name: reason or "it did not report in time" for name, reason in why.items()}
            # One that is silent may come back, as long as there is another one to wait for.
            if all(why.values()):
                for part in waiting:
                    part.lost = why[part.name]
            self._news.wait(0.5)  # Locust has no event for a worker that falls silent
            self._news.clear()

    # -- the workers

    def _workers(self) -> list[str]:
        if not isinstance(self._runner, MasterRunner):
            return ["local"]
        clients = self._runner.clients
        return [node.id for node in (*clients.ready, *clients.spawning, *clients.running)]

    def _gone(self, name: str) -> str | None:
        if not isinstance(self._runner, MasterRunner):
            return None
        node = self._runner.clients.get(name)
        if node is None:
            return "it left"
        return "it sends no heartbeat" if node.state == STATE_MISSING else None

    def _order(self, name: str, verb: str, **values: Any) -> AsyncResult[dict[str, Any]]:
        number = next(self._numbers)
        self._asked[number] = answer = AsyncResult()
        self._runner.send_message(ORDER, {"id": number, "verb": verb, **values}, name)
        return answer

    def _ask(self, name: str, verb: str, **values: Any) -> dict[str, Any]:
        return self._hear(name, self._order(name, verb, **values))

    def _hear(self, name: str, pending: AsyncResult[dict[str, Any]]) -> dict[str, Any]:
        """The answer of a worker. Raises ConfigError or GreeterError when it is an error, or is none."""
        try:
            answer: dict[str, Any] = pending.get(timeout=_PATIENCE_SECONDS)
        except gevent.Timeout:
            raise GreeterError(_SILENT.format(name)) from None
        if "error" in answer:
            kind = ConfigError if answer["usage"] else GreeterError
            raise kind(f"worker {name} cannot take part: {answer['error']}")
        return answer

    def _answered(self, answer: dict[str, Any]) -> None:
        if answer["id"] in self._asked:
            self._asked.pop(answer["id"]).set(answer)

    def _reported(self, name: str, data: dict[str, Any]) -> None:
        result, part = data.get(RESULT) or {}, self._parts.get(name)
        if part is None or result.get("run") != self._run or part.metrics is not None:
            return
        part.heard = tuple(result.get("heard", part.heard))
        if "metrics" in result:
            part.metrics, part.kernel = RunMetrics.from_json(result["metrics"]), result["kernel"]
        part.lost = result.get("lost", part.lost)
        self._news.set()

    def _leave(self) -> None:
        """Locust ends, by Ctrl-C or a signal: a run that goes on ends first, and reports."""
        if not self._over.is_set():
            self._leaving = True
            for name in self._parts:
                self._order(name, "stop")
            if not self._over.wait(_LAST_PATIENCE_SECONDS):
                logger.error("interrupted, and the workers do not report: there is no report")
                self._environment.process_exit_code = 130


def _longest(plan: LoadPlan) -> float:
    """The seconds after which every worker must have done its part of ``plan``."""
    length = plan.schedule[1] if plan.mode == "open" else plan.duration
    return plan.warmup + (inf if length is None else length) + plan.hold + plan.timeout


def say(text: str) -> None:
    """A result, for standard output; what Locust says goes to standard error."""
    sys.stdout.write(text)
    sys.stdout.flush()

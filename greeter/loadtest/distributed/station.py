"""A Locust worker's part of a load test: one generator process, which does what the master orders.

The law: no connection is made here. gevent has replaced this process's sockets and clocks by its own, which
would be seen in the figures; so the generator is a process without it, the same that ``greeter load -w``
starts, and this one only passes on: orders to it, its figures to the master, and a coarse copy of them to
Locust's own statistics, for its web page.
"""

from __future__ import annotations

import json
import platform
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import gevent  # type: ignore[import-untyped]  # gevent has no types
from gevent import subprocess
from gevent.event import Event  # type: ignore[import-untyped]  # gevent has no types
from locust.runners import WorkerRunner
from locust.stats import StatsEntry, StatsError

from greeter import __version__
from greeter.errors import ConfigError, GreeterError
from greeter.loadtest.generator import kernel
from greeter.loadtest.generator.worker_pool import worker_command
from greeter.loadtest.metrics.histogram import lowest
from greeter.loadtest.metrics.timeline import INTERVAL, Interval
from greeter.loadtest.plan.outcome import GREETED

if TYPE_CHECKING:
    from locust.env import Environment

# How a master's orders and the answers to them are called, and the results in a worker's report.
ORDER, ANSWER, RESULT = "greeter_order", "greeter_answer", "greeter"
# As what Locust's statistics show the connections.
METHOD, NAME = "TCP", "greeting"

# For a generator that was told to stop, or to begin, to say so.
_PATIENCE_SECONDS = 10.0


class Station:
    """Obeys a master, whose orders are messages with a ``verb``: prepare, clock, begin or stop."""

    def __init__(self, environment: Environment, runner: Any) -> None:
        self._environment, self._runner = environment, runner
        hooks: Any = environment.events  # Locust has no types for them
        self._hooks = hooks
        self._generator: Any = None
        self._over = Event()
        self._over.set()
        self._result: dict[str, Any] = {}
        runner.register_message(ORDER, lambda msg, **_: gevent.spawn(self._obey, msg.data))
        hooks.report_to_master.add_listener(lambda data, **_: data.update({RESULT: self._result}))
        for hook in (hooks.test_stopping, hooks.quitting):
            hook.add_listener(lambda **_: self._stop({}))

    def _obey(self, order: dict[str, Any]) -> None:
        obey = {"prepare": self._prepare, "clock": _clock, "begin": self._begin, "stop": self._stop}
        try:
            answer = obey[order["verb"]](order)
        except GreeterError as error:
            answer = {"error": str(error), "usage": isinstance(error, ConfigError)}
        self._runner.send_message(ANSWER, {"id": order["id"], **answer})

    def _prepare(self, order: dict[str, Any]) -> dict[str, Any]:
        """Start a generator for its share of the plan, and see that it can do it."""
        if order["version"] != __version__:
            raise ConfigError(f"it has greeter {__version__}, and the master {order['version']}")
        self._stop({})
        self._result = {"run": order["run"]}
        command, environment = worker_command()
        self._generator = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._tell({"plan": order["plan"], "target": None, "index": order["index"], "intervals": True})
        with gevent.Timeout(_PATIENCE_SECONDS, GreeterError("its generator does not start")):
            answer = self._hear()
        if "error" in answer:
            raise (ConfigError if answer["usage"] else GreeterError)(answer["error"])
        self._local = answer["local"]
        notes = answer["notes"]
        if self._local:
            notes.append(f"server and generator shared the machine {platform.node()}")
        return {"host": platform.node(), "notes": notes, "environment": kernel.environment(answer["ready"])}

    def _begin(self, order: dict[str, Any]) -> dict[str, Any]:
        if self._generator is None:
            raise GreeterError("it was stopped before the run began")
        self._over.clear()
        self._tell({"begin": order["moment"]})
        gevent.spawn(self._follow, kernel.counters() if self._local else {})
        return {}

    def _stop(self, _: dict[str, Any]) -> dict[str, Any]:
        """End the run, if there is one, and report what it has come to."""
        if self._generator is not None:
            if self._over.is_set():  # it never began, and ends with its input
                self._dismiss()
            else:
                self._tell({"stop": True})
                if not self._over.wait(_PATIENCE_SECONDS):
                    self._generator.kill()  # it is told of as one that is lost
                    self._over.wait()
        return {}

    def _follow(self, before: dict[str, int]) -> None:
        """Pass on what the generator tells, until it has reported or is gone."""
        try:
            while "metrics" not in (message := self._hear()):
                self._show(Interval.from_json(message["interval"]))
            self._result["metrics"] = message["metrics"]
            self._result["kernel"] = kernel.difference(before, kernel.counters())
            self._name_errors(message["metrics"]["outcomes"])
        except GreeterError as error:
            self._result["lost"] = str(error)
        finally:
            self._generator.stdout.close()
            self._report()
            self._dismiss()
            self._over.set()

    def _report(self) -> None:
        """Send a report now, as Locust does every few seconds."""
        data: dict[str, Any] = {}
        if isinstance(self._runner, WorkerRunner):
            self._hooks.report_to_master.fire(client_id=self._runner.client_id, data=data)
            self._runner.send_message("stats", data)
        else:  # Locust without a master
            self._hooks.worker_report.fire(client_id="local", data={RESULT: self._result})

    def _dismiss(self) -> None:
        generator, self._generator = self._generator, None
        with suppress(BrokenPipeError):
            generator.stdin.close()
        generator.wait()

    def _tell(self, message: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):  # one that is gone is found out by its silence
            self._generator.stdin.write(json.dumps(message).encode() + b"\n")
            self._generator.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        generator = self._generator
        line = generator.stdout.readline()
        if not line.endswith(b"\n"):
            raise GreeterError(f"its generator ended with status {generator.wait()}")
        message: dict[str, Any] = json.loads(line)
        return message

    # -- what Locust shows

    def _show(self, interval: Interval) -> None:
        elapsed, begun = self._result.get("heard", (0.0, 0))
        self._result["heard"] = (max(elapsed, interval.begin + INTERVAL), begun + interval.attempted)
        stats: Any = self._environment.stats
        entry = _entry(interval)
        stats.get(NAME, METHOD).extend(entry)
        stats.total.extend(entry)

    def _name_errors(self, outcomes: dict[str, int]) -> None:
        for outcome, count in outcomes.items():
            if count and outcome != GREETED:
                key = StatsError.create_key(METHOD, NAME, outcome)
                self._environment.stats.errors[key] = StatsError(METHOD, NAME, outcome, count)


def _clock(_: dict[str, Any]) -> dict[str, Any]:
    return {"monotonic": time.monotonic(), "time": time.time()}


def _entry(interval: Interval) -> Any:
    """An interval as an entry of Locust's statistics, which know milliseconds to two digits."""
    entry: Any = StatsEntry(None, NAME, METHOD)  # type: ignore[arg-type]  # no statistics, of its own
    now = time.time()
    entry.last_request_timestamp = now
    entry.num_requests = interval.greeted + interval.failed
    entry.num_failures = interval.failed
    entry.num_reqs_per_sec[int(now)] = entry.num_requests
    entry.num_fail_per_sec[int(now)] = interval.failed
    for index, count in interval.response.counts.items():
        ms = lowest(index) / 1000
        entry.response_times[round(float(f"{ms:.2g}"))] += count
        entry.total_response_time += ms * count
        entry.min_response_time = ms if entry.min_response_time is None else min(entry.min_response_time, ms)
        entry.max_response_time = max(entry.max_response_time, ms)
    entry.num_none_requests = entry.num_requests - sum(entry.response_times.values())
    return entry

"""A Locust worker of a load test: it runs one generator process on command of the master.

Invariants:

- This process makes no connection. gevent replaces its sockets and clocks, which would affect the figures.
- The generator is a process without gevent, the same that ``greeter load -w`` starts. This process relays
  commands to it and its results to the master, and adds rounded results to Locust's own statistics.
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
from greeter.loadtest.metrics.timeline import Interval
from greeter.loadtest.plan.outcome import GREETED

if TYPE_CHECKING:
    from locust.env import Environment

# Message types of commands and replies, and the key of the result in a worker's report.
COMMAND, REPLY, RESULT = "greeter_command", "greeter_reply", "greeter"
# The method and the name of the connections in Locust's statistics.
METHOD, NAME = "TCP", "greeting"

# Seconds for the generator to confirm a start or a stop.
_GENERATOR_TIMEOUT = 10.0


class LocustWorker:
    """Executes the commands of a master: prepare, clock, begin and stop."""

    def __init__(self, environment: Environment, runner: Any) -> None:
        self._environment, self._runner = environment, runner
        hooks: Any = environment.events  # Locust has no types for them
        self._hooks = hooks
        self._generator: Any = None
        self._finished = Event()
        self._finished.set()
        self._result: dict[str, Any] = {}
        runner.register_message(COMMAND, lambda msg, **_: gevent.spawn(self._dispatch, msg.data))
        hooks.report_to_master.add_listener(lambda data, **_: data.update({RESULT: self._result}))
        for hook in (hooks.test_stopping, hooks.quitting):
            hook.add_listener(lambda **_: self._stop({}))

    def _dispatch(self, message: dict[str, Any]) -> None:
        handlers = {"prepare": self._prepare, "clock": _read_clocks, "begin": self._begin, "stop": self._stop}
        try:
            reply = handlers[message["command"]](message)
        except GreeterError as error:
            reply = {"error": str(error), "usage": isinstance(error, ConfigError)}
        self._runner.send_message(REPLY, {"id": message["id"], **reply})

    def _prepare(self, message: dict[str, Any]) -> dict[str, Any]:
        """Start a generator for this worker's share of the plan, and wait until it is ready."""
        if message["version"] != __version__:
            raise ConfigError(f"it has greeter {__version__}, and the master {message['version']}")
        self._stop({})
        self._result = {"run": message["run"]}
        command, environment = worker_command()
        self._generator = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._datagrams = message["plan"]["target"].startswith("udp:")
        self._send({"plan": message["plan"], "target": None, "index": message["index"], "intervals": True})
        with gevent.Timeout(_GENERATOR_TIMEOUT, GreeterError("its generator did not start in time")):
            reply = self._recv()
        if "error" in reply:
            raise (ConfigError if reply["usage"] else GreeterError)(reply["error"])
        self._target_is_local = reply["local"]
        notes = reply["notes"]
        if self._target_is_local:
            notes.append(f"server and generator shared the machine {platform.node()}")
        return {
            "host": platform.node(),
            "address": reply["address"],
            "notes": notes,
            "environment": kernel.environment(reply["ready"]),
        }

    def _begin(self, message: dict[str, Any]) -> dict[str, Any]:
        if self._generator is None:
            raise GreeterError("it was stopped before the run started")
        self._finished.clear()
        self._send({"begin": message["start_time"]})
        gevent.spawn(self._relay, self._counters() if self._target_is_local else {})
        return {}

    def _counters(self) -> dict[str, int]:
        return kernel.counters_of(datagrams=self._datagrams)

    def _stop(self, _: dict[str, Any]) -> dict[str, Any]:
        """Stop the run, if any, and report the result."""
        if self._generator is not None:
            if self._finished.is_set():  # not started: it exits at the end of its input
                self._close_generator()
            else:
                self._send({"stop": True})
                if not self._finished.wait(_GENERATOR_TIMEOUT):
                    self._generator.kill()  # reported as lost
                    self._finished.wait()
        return {}

    def _relay(self, before: dict[str, int]) -> None:
        """Relay the messages of the generator until it has reported or exited."""
        try:
            while "metrics" not in (message := self._recv()):
                self._update_stats(Interval.from_json(message["interval"]))
            self._result["metrics"] = message["metrics"]
            self._result["kernel"] = kernel.difference(before, self._counters())
            self._add_errors(message["metrics"]["outcomes"])
        except GreeterError as error:
            self._result["lost"] = str(error)
        finally:
            self._generator.stdout.close()
            self._send_report()
            self._close_generator()
            self._finished.set()

    def _send_report(self) -> None:
        """Send a report now, as Locust does every few seconds."""
        data: dict[str, Any] = {}
        if isinstance(self._runner, WorkerRunner):
            self._hooks.report_to_master.fire(client_id=self._runner.client_id, data=data)
            self._runner.send_message("stats", data)
        else:  # Locust without a master
            self._hooks.worker_report.fire(client_id="local", data={RESULT: self._result})

    def _close_generator(self) -> None:
        generator, self._generator = self._generator, None
        with suppress(BrokenPipeError):
            generator.stdin.close()
        generator.wait()

    def _send(self, message: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):  # an exited generator is detected by _recv
            self._generator.stdin.write(json.dumps(message).encode() + b"\n")
            self._generator.stdin.flush()

    def _recv(self) -> dict[str, Any]:
        generator = self._generator
        line = generator.stdout.readline()
        if not line.endswith(b"\n"):
            raise GreeterError(f"its generator exited with status {generator.wait()}")
        message: dict[str, Any] = json.loads(line)
        return message

    # -- Locust's statistics

    def _update_stats(self, interval: Interval) -> None:
        elapsed, begun = self._result.get("progress", (0.0, 0))
        self._result["progress"] = (max(elapsed, interval.begin + interval.span), begun + interval.attempted)
        stats: Any = self._environment.stats
        entry = _stats_entry(interval)
        stats.get(NAME, METHOD).extend(entry)
        stats.total.extend(entry)

    def _add_errors(self, outcomes: dict[str, int]) -> None:
        for outcome, count in outcomes.items():
            if count and outcome != GREETED:
                key = StatsError.create_key(METHOD, NAME, outcome)
                self._environment.stats.errors[key] = StatsError(METHOD, NAME, outcome, count)


def _read_clocks(_: dict[str, Any]) -> dict[str, Any]:
    return {"monotonic": time.monotonic(), "time": time.time()}


def _stats_entry(interval: Interval) -> Any:
    """Convert an interval to an entry of Locust's statistics: milliseconds with two digits."""
    entry: Any = StatsEntry(None, NAME, METHOD)  # type: ignore[arg-type]  # an entry without a parent
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

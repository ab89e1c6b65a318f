"""Load from many machines: Locust controls the workers, greeter's generator makes the load.

Locust is the control plane: it knows the workers, starts and stops them together, and has a web page and an
exit code. Each worker runs a generator as ``greeter load`` does. Their counts are added exactly into one
report with the same figures, files, thresholds and exit codes.

A locustfile, with arguments of LoadPlan in ``plan``::

    from greeter.loadtest.locust import GreeterUser

    class Canary(GreeterUser):
        host = "127.0.0.1:9999"
        plan = {"rate": 2000, "duration": 30, "thresholds": ["response:p99<20ms"]}

Start one master, and one worker for each core that makes load, on any number of machines::

    locust -f locustfile.py --headless --master --expect-workers 2 -H 10.0.0.1:9999 --greeter-rate 20k
    locust -f locustfile.py --worker --master-host 10.0.0.2

Only the master takes options. These options of Locust apply:

- ``-H``: the target.
- ``-u``: the maximum number of open connections (``connections``).
- ``-t``: the length of the run (``duration``).
- ``--expect-workers-max-wait``: how many seconds to wait for workers.

The others begin with ``--greeter-`` (see ``locust -f … --help``) or are environment variables such as
``LOCUST_GREETER_RATE``. They override ``plan``. Without ``--headless``, the web page asks for them. What it
calls users is not related to connections.

The master prints and writes the report. The exit code is that of ``greeter load``, and 1 also if a worker was
lost. The report names a lost worker; its figures are missing.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, ClassVar

from greeter.core.durations import parse_duration
from greeter.core.endpoint import DEFAULT_ENDPOINT
from greeter.core.escapes import unescape
from greeter.errors import ConfigError, GreeterError, MissingExtra
from greeter.loadtest.plan.pacer import Stage
from greeter.loadtest.plan.plan import LoadPlan, parse_stage
from greeter.loadtest.plan.threshold import Threshold
from greeter.loadtest.plan.units import parse_count, parse_percent, parse_quantity
from greeter.loadtest.report.baseline import DEFAULT_TOLERANCE
from greeter.loadtest.report.outputs import OUTPUTS, check_outputs, write_outputs
from greeter.loadtest.report.saved import read_baseline

try:
    from gevent.event import Event  # type: ignore[import-untyped]  # gevent has no types
    from locust import User, events, task
    from locust.runners import MasterRunner, WorkerRunner
except ImportError:
    raise MissingExtra("greeter.loadtest.locust", "locust") from None

from greeter.loadtest.distributed.locust_master import LocustMaster, print_result
from greeter.loadtest.distributed.locust_worker import LocustWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from locust.env import Environment

    from greeter.loadtest.report.report import LoadReport

logger = logging.getLogger("greeter")


class GreeterUser(User):
    """The base class for the user class of a locustfile, which must have exactly one.

    - ``host``: the target.
    - ``plan``: arguments of LoadPlan other than target and workers; thresholds and stages may be text.

    Locust starts one user per worker. Users make no load; the worker's generator does.
    """

    abstract = True
    host = str(DEFAULT_ENDPOINT)
    plan: ClassVar[Mapping[str, Any]] = {}

    @task
    def idle(self) -> None:
        """Wait until Locust ends the test."""
        Event().wait()


def _threshold(limit: Threshold | str) -> Threshold:
    return limit if isinstance(limit, Threshold) else Threshold.parse(limit)


def _stage(stage: Stage | str) -> Stage:
    return stage if isinstance(stage, Stage) else parse_stage(stage)


# Options of the plan: the parser and the help.
_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "rate": (
        parse_quantity,
        "New connections per second, for all workers together (open loop).",
    ),
    "stages": (
        _stage,
        "DUR:RATE changes the rate to RATE, linearly, within DUR; comma-separated.",
    ),
    "connections": (parse_count, "Maximum number of open connections, for all workers together."),
    "count": (parse_count, "Stop after this many connections, for all workers together."),
    "duration": (parse_duration, "Stop after this time, as in 30s. Default: 10s."),
    "warmup": (parse_duration, "Make load for this long before measuring."),
    "hold": (parse_duration, "Keep each connection open for this long after its greeting."),
    "timeout": (parse_duration, "Timeout of the whole greeting, including the connect. Default: 10s."),
    "connect_timeout": (parse_duration, "Connect timeout; included in --greeter-timeout. Default: 5s."),
    "until": (str, "What ends a greeting: eof, line, reply, text:TEXT, bytes:N, idle:DUR. Default: eof."),
    "send": (unescape, "What to send first, with escapes, as in HELO me\\r\\n."),
    "proxy_protocol": (str, "Send a PROXY header of this version first: v1 or v2."),
    "expect": (str, "Text that a greeting must contain."),
    "thresholds": (_threshold, "Limits such as response:p99<20ms; comma-separated."),
    "max_lag": (parse_duration, "How late starts may be (p99) before the run counts as disturbed."),
}
_LIST_OPTIONS = {"stages", "thresholds"}
_OUTPUT_OPTIONS = {
    "json": "Write the report to this JSON file.",
    "html": "Write the report to this HTML file.",
    "csv": "Write the timeline to this CSV file.",
    "hdr": "Write the histograms to this HdrHistogram log (.hlog).",
    "baseline": "Compare with the JSON report of an earlier run.",
    "tolerance": "How much worse than the baseline passes, in percent. Default: 10.",
}


def _add_options(parser: Any, **_: Any) -> None:
    # All options are text for Locust, so that its web page can change them.
    group = parser.add_argument_group("greeter options", "The load and the outputs; for the master only.")
    help_texts = {name: text for name, (_, text) in _OPTIONS.items()}
    for name, text in (help_texts | _OUTPUT_OPTIONS).items():
        group.add_argument(
            f"--greeter-{name.removesuffix('s') if name in _LIST_OPTIONS else name}".replace("_", "-"),
            dest=f"greeter_{name}",
            default="",
            metavar="<text>",
            env_var=f"LOCUST_GREETER_{name.upper()}",
            help=text.replace("%", "%%"),
        )


class _Settings:
    """The settings of the user class and the options, read at each use: the web page may change them."""

    def __init__(self, environment: Environment, user_class: type[GreeterUser]) -> None:
        self._environment, self._user_class = environment, user_class
        self._baseline: tuple[LoadReport, float] | None = None

    def option(self, name: str) -> str:
        value: str = getattr(self._environment.parsed_options, f"greeter_{name}", "")
        return value.strip()

    def plan(self, workers: int) -> LoadPlan:
        """Return the plan for a number of workers.

        Raises:
            ConfigError: the plan, the baseline or an output file is invalid.
        """
        values = dict(self._user_class.plan)
        for name, (parse, _) in _OPTIONS.items():
            if text := self.option(name):
                values[name] = (
                    [item for item in text.split(",") if item] if name in _LIST_OPTIONS else parse(text)
                )
        if self.option("rate") and not self.option("stages"):
            values.pop("stages", None)
        if self.option("stages") and not self.option("duration"):
            values.pop("duration", None)  # the stages determine the length
        for name, parse_item in (("stages", _stage), ("thresholds", _threshold)):
            values[name] = [parse_item(item) for item in values.get(name, ())]
        self._baseline = self._read_baseline()
        check_outputs(self._files(), self._baseline and self._baseline[0], "--greeter-")
        host = self._environment.host or self._user_class.host or str(DEFAULT_ENDPOINT)
        try:
            return LoadPlan(host, **values, workers=workers)
        except TypeError as error:  # an unknown argument
            raise ConfigError(f"the plan of {self._user_class.__name__} is invalid: {error}") from None

    def _read_baseline(self) -> tuple[LoadReport, float] | None:
        path, tolerance = self.option("baseline"), self.option("tolerance")
        percent = parse_percent(tolerance) if tolerance else DEFAULT_TOLERANCE
        if tolerance and not path:
            raise ConfigError("--greeter-tolerance requires --greeter-baseline")
        return (read_baseline(path), percent) if path else None

    def _files(self) -> dict[str, str]:
        return {name: path for name in OUTPUTS if (path := self.option(name))}

    def publish(self, report: LoadReport) -> int:
        """Compare the report with the baseline, print it and write the outputs. Returns the exit code."""
        if self._baseline is not None:
            report = report.against(*self._baseline, self.option("baseline"))
        return write_outputs(
            report,
            self._baseline and self._baseline[0],
            self._files(),
            lambda text: print_result(f"\n{text}\n"),
            lambda error: logger.error("%s", error),
        )


def _on_init(environment: Environment, runner: Any, **_: Any) -> None:
    """Set up this process as master, as worker, or, in a local run, as both."""
    users = [user for user in environment.user_classes if issubclass(user, GreeterUser)]
    if not users:
        return
    if not isinstance(runner, MasterRunner):
        LocustWorker(environment, runner)
    if not isinstance(runner, WorkerRunner):
        settings = _Settings(environment, users[0])
        options = environment.parsed_options
        try:
            if len(users) > 1:
                raise ConfigError(
                    f"a run has one GreeterUser: choose one of {', '.join(u.__name__ for u in users)}"
                )
            if options is not None and options.headless:
                _convert_options(options)
                settings.plan(1)  # report errors before waiting for workers
        except GreeterError as error:
            logger.error("%s", error)
            sys.exit(2)
        LocustMaster(environment, runner, settings.plan, settings.publish)


def _convert_options(options: Any) -> None:
    """Convert Locust's own options to options of the plan, and set those that Locust needs."""
    if options.num_users and not options.greeter_connections:
        options.greeter_connections = str(options.num_users)
    if options.run_time and not (options.greeter_duration or options.greeter_stages):
        options.greeter_duration = f"{options.run_time}s"
    options.run_time = None  # the run ends with the load
    options.num_users = options.spawn_rate = options.expect_workers  # one user per worker, started at once


hooks: Any = events  # Locust has no types for them
hooks.init_command_line_parser.add_listener(_add_options)
hooks.init.add_listener(_on_init)

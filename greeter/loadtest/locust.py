"""Load from many machines: Locust brings them together, greeter's own generator makes the load.

The law: Locust is the control plane (it knows the workers, starts and stops them together, has a web page
and an exit code) and no more. Each worker runs a generator as ``greeter load`` does, and what they counted
is added up exactly, to one report with the same figures, files, thresholds and exit codes.

A locustfile is this, with whatever a LoadPlan takes in ``plan``::

    from greeter.loadtest.locust import GreeterUser

    class Canary(GreeterUser):
        host = "127.0.0.1:9999"
        plan = {"rate": 2000, "duration": 30, "thresholds": ["response:p99<20ms"]}

One master, and a worker for each core that is to make load, on as many machines as it takes::

    locust -f locustfile.py --headless --master --expect-workers 2 -H 10.0.0.1:9999 --greeter-rate 20k
    locust -f locustfile.py --worker --master-host 10.0.0.2

Options are given to the master alone. Those of Locust that mean something here: ``-H`` is the target, ``-u``
how many clients are there at once, at the most (``connections``), ``-t`` how long the run is (``duration``),
``--expect-workers-max-wait`` how many seconds to wait for workers. The others begin with ``--greeter-``;
``locust -f … --help`` has them, and ``LOCUST_GREETER_RATE`` and its like set them too. They go before
``plan``. The web page asks for them when there is no ``--headless``; what it calls users is not ours.

The report is printed and written by the master. The exit code is that of ``greeter load``, 1 also when a
worker was lost, whose part is then missing from the figures and named.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, ClassVar

from greeter.core.endpoint import DEFAULT_ENDPOINT
from greeter.errors import ConfigError, GreeterError, MissingExtra
from greeter.loadtest.plan.pacer import Stage
from greeter.loadtest.plan.plan import LoadPlan, parse_stage
from greeter.loadtest.plan.threshold import Threshold
from greeter.loadtest.plan.units import parse_count, parse_duration, parse_percent, parse_quantity
from greeter.loadtest.report.baseline import DEFAULT_TOLERANCE
from greeter.loadtest.report.outputs import OUTPUTS, check, deliver
from greeter.loadtest.report.saved import read_baseline

try:
    from gevent.event import Event  # type: ignore[import-untyped]  # gevent has no types
    from locust import User, events, task
    from locust.runners import MasterRunner, WorkerRunner
except ImportError:
    raise MissingExtra("greeter.loadtest.locust", "locust") from None

from greeter.loadtest.distributed.conductor import Conductor, say
from greeter.loadtest.distributed.station import Station

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from locust.env import Environment

    from greeter.loadtest.report.report import LoadReport

logger = logging.getLogger("greeter")


class GreeterUser(User):
    """What a locustfile has for greeter to make the load; ``host`` is the target.

    ``plan`` holds arguments of LoadPlan but target and workers; thresholds and stages may be text. There
    is one of these in a locustfile. Locust counts its users; the load is not theirs but a generator's.
    """

    abstract = True
    host = str(DEFAULT_ENDPOINT)
    plan: ClassVar[Mapping[str, Any]] = {}

    @task
    def be_there(self) -> None:
        """Until Locust ends the test."""
        Event().wait()


def _threshold(limit: Threshold | str) -> Threshold:
    return limit if isinstance(limit, Threshold) else Threshold.parse(limit)


def _stage(stage: Stage | str) -> Stage:
    return stage if isinstance(stage, Stage) else parse_stage(stage)


# Options of the plan: what reads them, and what they are for.
_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "rate": (
        parse_quantity,
        "New connections a second, of all workers, whether or not earlier ones have ended.",
    ),
    "stages": (
        _stage,
        "DUR:RATE goes in a straight line to RATE within DUR, as in 30s:500; several with commas.",
    ),
    "connections": (parse_count, "Connections open at once, at the most, of all workers."),
    "count": (parse_count, "End after so many connections, of all workers, as in 10k."),
    "duration": (parse_duration, "End after this time, as in 30s. Default: 10s."),
    "warmup": (parse_duration, "Load for so long before the figures begin."),
    "hold": (parse_duration, "Keep each connection open for so long after its greeting."),
    "timeout": (parse_duration, "Time for a connection and its whole greeting. Default: 10s."),
    "connect_timeout": (parse_duration, "Time of that for connecting. Default: 5s."),
    "until": (str, "What ends a greeting: eof or line. Default: eof."),
    "expect": (str, "Text that a greeting must contain."),
    "thresholds": (_threshold, "Limits to keep, as in response:p99<20ms; several with commas."),
}
_LISTS = {"stages", "thresholds"}
_OTHERS = {
    "json": "Write the report there.",
    "html": "Write the report there as a page to look at.",
    "csv": "Write the timeline there.",
    "hdr": "Write the histograms there, as an .hlog.",
    "baseline": "Compare with the JSON report of an earlier run.",
    "tolerance": "How many percent worse than the baseline is still good. Default: 10.",
}


def _add_options(parser: Any, **_: Any) -> None:
    # All of them are text to Locust, so that its web page can change them.
    group = parser.add_argument_group(
        "greeter options", "What load to make, and what to write. Of the master."
    )
    described = {name: words for name, (_, words) in _OPTIONS.items()}
    for name, words in (described | _OTHERS).items():
        group.add_argument(
            f"--greeter-{name.removesuffix('s') if name in _LISTS else name}".replace("_", "-"),
            dest=f"greeter_{name}",
            default="",
            metavar="<text>",
            env_var=f"LOCUST_GREETER_{name.upper()}",
            help=words.replace("%", "%%"),
        )


class _Choices:
    """What a user has chosen, by a class and by options: read when it is needed, for the web changes it."""

    def __init__(self, environment: Environment, user: type[GreeterUser]) -> None:
        self._environment, self._user = environment, user
        self._old: tuple[LoadReport, float] | None = None

    def option(self, name: str) -> str:
        value: str = getattr(self._environment.parsed_options, f"greeter_{name}", "")
        return value.strip()

    def plan(self, workers: int) -> LoadPlan:
        """The plan for so many workers. Raises ConfigError, also for what will be needed when it is over."""
        values = dict(self._user.plan)
        for name, (parse, _) in _OPTIONS.items():
            if text := self.option(name):
                values[name] = (
                    [text_ for text_ in text.split(",") if text_] if name in _LISTS else parse(text)
                )
        if self.option("rate") and not self.option("stages"):
            values.pop("stages", None)
        if self.option("stages") and not self.option("duration"):
            values.pop("duration", None)  # the stages say how long the run is
        for name, read_one in (("stages", _stage), ("thresholds", _threshold)):
            values[name] = [read_one(one) for one in values.get(name, ())]
        self._old = self._baseline()
        check(self._files(), self._old and self._old[0], "--greeter-")
        host = self._environment.host or self._user.host or str(DEFAULT_ENDPOINT)
        try:
            return LoadPlan(host, **values, workers=workers)
        except TypeError as error:  # an argument that there is not
            raise ConfigError(f"the plan of {self._user.__name__} is none: {error}") from None

    def _baseline(self) -> tuple[LoadReport, float] | None:
        path, tolerance = self.option("baseline"), self.option("tolerance")
        percent = parse_percent(tolerance) if tolerance else DEFAULT_TOLERANCE
        if tolerance and not path:
            raise ConfigError("--greeter-tolerance means nothing without --greeter-baseline")
        return (read_baseline(path), percent) if path else None

    def _files(self) -> dict[str, str]:
        return {name: path for name in OUTPUTS if (path := self.option(name))}

    def publish(self, report: LoadReport) -> int:
        """Compare the report, print it, and write what was asked for; returns the exit code."""
        if self._old is not None:
            report = report.against(*self._old, self.option("baseline"))
        return deliver(
            report,
            self._old and self._old[0],
            self._files(),
            lambda text: say(f"\n{text}\n"),
            lambda error: logger.error("%s", error),
        )


def _join(environment: Environment, runner: Any, **_: Any) -> None:
    """Take up one's part, as a master, as a worker, or, without either, as both."""
    users = [user for user in environment.user_classes if issubclass(user, GreeterUser)]
    if not users:
        return
    if not isinstance(runner, MasterRunner):
        Station(environment, runner)
    if not isinstance(runner, WorkerRunner):
        choices = _Choices(environment, users[0])
        options = environment.parsed_options
        try:
            if len(users) > 1:
                raise ConfigError(f"one load at a time: choose one of {', '.join(u.__name__ for u in users)}")
            if options is not None and options.headless:
                _translate(options)
                choices.plan(1)  # before anybody waits for workers
        except GreeterError as error:
            logger.error("%s", error)
            sys.exit(2)
        Conductor(environment, runner, choices.plan, choices.publish)


def _translate(options: Any) -> None:
    """Take Locust's own options for what they mean here, and give it those that its users need."""
    if options.num_users and not options.greeter_connections:
        options.greeter_connections = str(options.num_users)
    if options.run_time and not (options.greeter_duration or options.greeter_stages):
        options.greeter_duration = f"{options.run_time}s"
    options.run_time = None  # the end of the load is the end of the run
    options.num_users = options.spawn_rate = options.expect_workers  # one each, all at once


hooks: Any = events  # Locust has no types for them
hooks.init_command_line_parser.add_listener(_add_options)
hooks.init.add_listener(_join)

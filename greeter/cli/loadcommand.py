"""Run ``greeter load`` and ``greeter report``: options in, a report, files and an exit code out.

Invariants:

- A usage error is reported before the run.
- An interrupted run still produces its report.
- If one file cannot be written, the others are still written.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from greeter.errors import ConfigError
from greeter.loadtest import LoadPlan, LoadReport, Threshold, load
from greeter.loadtest.plan.plan import PlanError
from greeter.loadtest.report.baseline import DEFAULT_TOLERANCE
from greeter.loadtest.report.outputs import OUTPUTS, check_outputs, write_outputs
from greeter.loadtest.report.progress import progress
from greeter.loadtest.report.saved import read_baseline, read_reports
from greeter.system.loops import run
from greeter.system.signals import SAME_REQUEST_SECONDS, stop_signals

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from greeter.config.options import LoadOptions, ReportOptions


def _flag(field: str) -> str:
    """Return the flag of a field of the plan."""
    return "--" + field.replace("stages", "stage").replace("source_ips", "source_ip").replace("_", "-")


def run_load(
    options: LoadOptions,
    echo: Callable[[str], None],
    report_error: Callable[[OSError], None],
    spell: Callable[[str], str] = _flag,
) -> int:
    """Run a load test, write the outputs, print the summary.

    Args:
        options: The options of the command.
        echo: Prints the summary.
        report_error: Called for each output that cannot be printed or written.
        spell: Returns how an error names a field of the plan.

    Returns:
        The exit code of the report; 1 if that is 0 and an output failed.

    Raises:
        ConfigError: The options contradict each other, or the baseline cannot be read.
        GreeterError: The load test could not run.
    """
    plan, files = plan_of(options, spell), _files(options)
    # Check the baseline and the output files before the run.
    if options.baseline is None and options.tolerance is not None:
        raise ConfigError("--tolerance needs --baseline")
    old = None if options.baseline is None else read_baseline(options.baseline)
    check_outputs(files, old)
    try:
        report = run(_load(plan, quiet=options.quiet))
    except PlanError as error:  # against the limits of this machine
        raise error.with_field_names(spell) from None
    if old is not None:
        report = report.against(old, _tolerance(options), str(options.baseline))
    return write_outputs(report, old, files, echo, report_error, options.title)


def run_report(
    options: ReportOptions, echo: Callable[[str], None], report_error: Callable[[OSError], None]
) -> int:
    """Read saved runs, write the outputs, print the summary.

    Args:
        options: The options of the command.
        echo: Prints the summary.
        report_error: Called for each output that cannot be printed or written.

    Returns:
        The exit code of the run; 1 if that is 0 and an output failed.

    Raises:
        GreeterError: A file cannot be read, is not a report, or does not go with the others.
    """
    files = _files(options)
    check_outputs(files)
    if options.tolerance is not None and (options.merge or len(options.runs) == 1):
        raise ConfigError("--tolerance needs a baseline, as in RUN.json BASELINE.json")
    report, old = read_reports(options.runs, merged=options.merge, tolerance=_tolerance(options))
    return write_outputs(report, old, files, echo, report_error, options.title)


def _files(options: LoadOptions | ReportOptions) -> dict[str, Path]:
    """Return the paths of the requested outputs, by option."""
    if options.title is not None and options.html is None:
        raise ConfigError("--title needs --html")
    return {name: path for name in OUTPUTS if (path := getattr(options, name, None)) is not None}


def _tolerance(options: LoadOptions | ReportOptions) -> float:
    return DEFAULT_TOLERANCE if options.tolerance is None else options.tolerance


def plan_of(options: LoadOptions, spell: Callable[[str], str] = _flag) -> LoadPlan:
    """Make a load plan from options.

    Args:
        options: The options of ``greeter load``.
        spell: Returns how an error names a field of the plan.

    Returns:
        The plan.

    Raises:
        ConfigError: The plan is not valid.
    """
    try:
        return LoadPlan(
            options.target,
            connections=options.connections,
            count=options.count,
            duration=options.duration,
            rate=options.rate,
            stages=options.stage,
            hold=options.hold,
            timeout=options.timeout,
            connect_timeout=options.connect_timeout,
            until=options.until,
            send=options.send or b"",
            proxy_protocol=options.proxy_protocol,
            expect=options.expect,
            max_bytes=options.max_bytes,
            workers=options.workers,
            warmup=options.warmup,
            source_ips=options.source_ip,
            tls=options.tls,
            tls_ca=options.tls_ca,
            tls_cert=options.tls_cert,
            tls_key=options.tls_key,
            server_name=options.server_name,
            thresholds=[Threshold.parse(text) for text in options.threshold],
            max_lag=options.max_lag,
        )
    except PlanError as error:
        raise error.with_field_names(spell) from None


async def _load(plan: LoadPlan, *, quiet: bool) -> LoadReport:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    # They end a run early and keep its report: Ctrl-C, and the signal of timeout(1) and of containers.
    numbers = stop_signals()

    def interrupted() -> None:
        if not stop.is_set():
            stop.set()
            loop.call_later(SAME_REQUEST_SECONDS, exit_at_the_next)

    def exit_at_the_next() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)  # a second request does not wait for a resolver

    with contextlib.suppress(NotImplementedError):  # on other systems, Ctrl-C is KeyboardInterrupt
        for number in numbers:
            loop.add_signal_handler(number, interrupted)
    with progress(plan, quiet=quiet) as watcher:
        # A live display in the process of the generator would distort the figures.
        return await load(plan, on_snapshot=watcher, stop=stop, isolate=watcher is not None)

"""``greeter load`` and ``greeter report``: from options to a report, files and an exit code.

Invariants:

- A usage error is reported before the run.
- An interrupted run still has its report.
- A file that cannot be written does not keep the others from being written.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

from greeter.errors import ConfigError
from greeter.loadtest import LoadPlan, LoadReport, Threshold, load
from greeter.loadtest.plan.plan import PlanError
from greeter.loadtest.report.baseline import DEFAULT_TOLERANCE
from greeter.loadtest.report.outputs import OUTPUTS, check_outputs, write_outputs
from greeter.loadtest.report.progress import progress
from greeter.loadtest.report.saved import read_baseline, read_reports
from greeter.system.loops import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from greeter.config.options import LoadOptions, ReportOptions

# What ends a run early, its report whole: Ctrl-C, and what a time limit or a stopped container sends.
STOPS = (signal.SIGINT, signal.SIGTERM)


def _flag(field: str) -> str:
    """The option that a field of the plan comes from."""
    return "--" + field.replace("stages", "stage").replace("_", "-")


def run_load(
    options: LoadOptions,
    say: Callable[[str], None],
    complain: Callable[[OSError], None],
    spell: Callable[[str], str] = _flag,
) -> int:
    """Carry out a load test, write the outputs, print the summary.

    Args:
        options: The options of the command.
        say: Prints the summary.
        complain: Is told what cannot be printed or written; the other outputs are written all the same.
        spell: How an error calls a field of the plan.

    Returns:
        The exit code: that of the report; where that is 0 and an output failed, 1.

    Raises:
        GreeterError: Everything else.
    """
    plan, files = plan_of(options, spell), _files(options)
    # What may be wrong with the old run or with the files is said before the run, not after it.
    if options.baseline is None and options.tolerance is not None:
        raise ConfigError("--tolerance means nothing without --baseline")
    old = None if options.baseline is None else read_baseline(options.baseline)
    check_outputs(files, old)
    report = run(_load(plan, quiet=options.quiet))
    if old is not None:
        report = report.against(old, _tolerance(options), str(options.baseline))
    return write_outputs(report, old, files, say, complain)


def run_report(
    options: ReportOptions, say: Callable[[str], None], complain: Callable[[OSError], None]
) -> int:
    """Read saved runs, write what was asked for, say the summary; returns the exit code of the run.

    ``complain`` as for ``run_load``.
    """
    files = _files(options)
    check_outputs(files)
    if options.tolerance is not None and (options.merge or len(options.runs) == 1):
        raise ConfigError("--tolerance means nothing without a baseline, as in RUN.json BASELINE.json")
    report, old = read_reports(options.runs, merged=options.merge, tolerance=_tolerance(options))
    return write_outputs(report, old, files, say, complain)


def _files(options: LoadOptions | ReportOptions) -> dict[str, Path]:
    """The paths of the outputs that are asked for."""
    return {name: path for name in OUTPUTS if (path := getattr(options, name, None)) is not None}


def _tolerance(options: LoadOptions | ReportOptions) -> float:
    return DEFAULT_TOLERANCE if options.tolerance is None else options.tolerance


def plan_of(options: LoadOptions, spell: Callable[[str], str] = _flag) -> LoadPlan:
    """The plan that the options describe. Raises ConfigError, with fields as ``spell`` writes them."""
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
        )
    except PlanError as error:
        raise error.spelled(spell) from None


async def _load(plan: LoadPlan, *, quiet: bool) -> LoadReport:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def interrupted() -> None:
        stop.set()
        for number in STOPS:
            loop.remove_signal_handler(number)  # a second one does not wait, for a resolver say

    with contextlib.suppress(NotImplementedError):  # elsewhere, Ctrl-C is KeyboardInterrupt
        for number in STOPS:
            loop.add_signal_handler(number, interrupted)
    with progress(plan, quiet=quiet) as watcher:
        # A live display in the generator's own process would be seen in the figures.
        return await load(plan, on_snapshot=watcher, stop=stop, isolate=watcher is not None)

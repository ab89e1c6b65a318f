"""``greeter load`` and ``greeter report``: from options to a report, files and an exit code.

The law: results go to where they were asked for, whole or not at all, and an interrupted run still tells
what it saw.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

from greeter.loadtest import LoadPlan, LoadReport, Threshold, html, load
from greeter.loadtest.outfile import write
from greeter.loadtest.progress import progress
from greeter.loadtest.render import hdr_log, summary, timeline_csv
from greeter.loadtest.saved import gather, read_baseline
from greeter.loops import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from greeter.options import LoadOptions, ReportOptions

# What ends a run early, its report whole: Ctrl-C, and what a time limit or a stopped container sends.
STOPS = (signal.SIGINT, signal.SIGTERM)


def run_load(options: LoadOptions, say: Callable[[str], None]) -> int:
    """Carry out a load test, write what was asked for, say the summary; returns the exit code."""
    plan = plan_of(options)
    # What may be wrong with the old run, or missing for the page, is said before the run, not after it.
    old = None if options.baseline is None else read_baseline(options.baseline)
    if options.html is not None:
        html.packages()
    report = run(_load(plan, quiet=options.quiet))
    if old is not None:
        report = report.against(old, options.tolerance, str(options.baseline))
    return _deliver(
        report,
        say,
        (options.json, report.to_json),
        (options.csv, lambda: timeline_csv(report)),
        (options.hdr, lambda: hdr_log(report)),
        (options.html, lambda: html.page(report, old)),
    )


def run_report(options: ReportOptions, say: Callable[[str], None]) -> int:
    """Read saved runs, write what was asked for, say the summary; returns the exit code of the run."""
    if options.html is not None:
        html.packages()
    report, old = gather(options.runs, merged=options.merge, tolerance=options.tolerance)
    return _deliver(
        report, say, (options.json, report.to_json), (options.html, lambda: html.page(report, old))
    )


def _deliver(
    report: LoadReport, say: Callable[[str], None], *files: tuple[Path | None, Callable[[], str]]
) -> int:
    say(summary(report).removesuffix("\n"))
    for path, render in files:
        if path is not None:
            write(path, render())
    return report.exit_code


def plan_of(options: LoadOptions) -> LoadPlan:
    """The plan that the options describe. Raises ConfigError."""
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

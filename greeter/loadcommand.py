"""``greeter load`` and the load test of ``greeter demo``: from options to a report, files and an exit code.

The law: results go to where they were asked for, whole or not at all, and an interrupted run still tells
what it saw.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

from greeter.errors import ConfigError, reason
from greeter.loadtest import LoadPlan, LoadReport, Threshold, load
from greeter.loadtest.outfile import write
from greeter.loadtest.progress import progress
from greeter.loadtest.render import hdr_log, summary, timeline_csv
from greeter.loops import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from greeter.options import LoadOptions


def run_load(options: LoadOptions, say: Callable[[str], None]) -> int:
    """Carry out a load test, write what was asked for, say the summary; returns the exit code."""
    plan = plan_of(options)
    old = None if options.baseline is None else read_report(options.baseline)  # before the run, not after
    report = run(_load(plan, quiet=options.quiet))
    if old is not None:
        report = report.against(old, options.tolerance, str(options.baseline))
    say(summary(report).removesuffix("\n"))
    for path, render in (
        (options.json, LoadReport.to_json),
        (options.csv, timeline_csv),
        (options.hdr, hdr_log),
    ):
        if path is not None:
            write(path, render(report))
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


def read_report(path: Path) -> LoadReport:
    """A report from its JSON file. Raises ConfigError for one that cannot be read or is of another kind."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{str(path)!r} is no report of a load test: it is not text") from error
    return LoadReport.from_json(text, str(path))


async def _load(plan: LoadPlan, *, quiet: bool) -> LoadReport:
    stop = asyncio.Event()
    with contextlib.suppress(NotImplementedError):  # elsewhere, Ctrl-C is KeyboardInterrupt
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    with progress(plan, quiet=quiet) as watcher:
        # A live display in the generator's own process would be seen in the figures.
        return await load(plan, on_snapshot=watcher, stop=stop, isolate=watcher is not None)

"""The command ``check``: check a service, and print what it lacks as it is found.

Invariants:

- The table goes to stdout, unless a report is written there: then that is the only thing on stdout.
- A report is written also if the service never greeted, and on no failure halfway.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from greeter.conformance import text
from greeter.conformance.check_plan import CheckPlan
from greeter.conformance.check_run import run
from greeter.conformance.checks import CHECKS
from greeter.conformance.findings import Verdict
from greeter.conformance.junit import junit
from greeter.conformance.profiles import profile
from greeter.core.replies import Until
from greeter.errors import ConfigError, MissingExtra
from greeter.loadtest.report import outfile
from greeter.system import loops
from greeter.system.fdlimit import raise_fd_limit
from greeter.system.tls import client_context

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from greeter.config.check_options import CheckOptions
    from greeter.conformance.check_report import CheckReport, Result
    from greeter.conformance.registry import Check
    from greeter.conformance.target_service import TargetService

    Echo = Callable[..., None]


def run_check(options: CheckOptions, echo: Echo, spell: Callable[[str], str]) -> int:
    """Run the command.

    Args:
        options: Its options.
        echo: Prints a line to stdout; with ``err=True`` to stderr.
        spell: Returns the option of a field as it was given.

    Returns:
        The exit code: 0, 1 (never greeted), 98 (a must is unsure) or 99 (a must is broken).

    Raises:
        ConfigError: An option is wrong, or options contradict each other.
        GreeterError: The target's name cannot be resolved, or a report cannot be written.
    """
    if options.list:
        for line in text.listing(CHECKS):
            echo(line)
        return 0
    if options.explain is not None:
        if options.explain not in CHECKS:
            raise ConfigError(f"{options.explain!r} is not a check; --list shows them")
        for line in text.explanation(CHECKS[options.explain]):
            echo(line)
        return 0
    plan = _plan(options, spell)
    outputs: dict[str, Path] = {
        name: path for name in ("json", "junit", "html") if (path := getattr(options, name)) is not None
    }
    for path in outputs.values():
        outfile.check(path)
    if options.html is not None:
        _page()  # raises MissingExtra before anything is asked
    quiet = any(outfile.is_stdout(path) for path in outputs.values())
    paint = _paint() if not quiet else text.plain
    say: Echo = (lambda _line: None) if quiet else echo
    raise_fd_limit()

    progress = _Progress() if not quiet and _is_terminal() else None

    def begin(service: TargetService, checks: tuple[Check, ...]) -> None:
        if service.gentle and checks[0].id in ("greets", "udp-greets"):
            say(text.WARNING.format(target=plan.target))
        if progress is not None:
            progress.show(checks)

    def show(result: Result) -> None:
        if progress is not None:
            progress.clear()
        if result.check.id in ("greets", "udp-greets"):
            say(text.opening(str(plan.target), result.greeting))
            say("")
        if result.finding.verdict is Verdict.SKIPPED:
            return  # at the end, by reason
        say(text.line(result, paint))
        if options.verbose and (story := text.story(result)):
            say(story)

    # asyncio logs a traceback if Ctrl-C comes while one of its connects completes.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)
    try:
        report = loops.run(_until_terminated(run(plan, show, begin)), "asyncio")
    finally:
        if progress is not None:
            progress.clear()
    for line in text.closing(report, paint):
        say(line)
    for name, path in outputs.items():
        outfile.write(path, _rendered(report, name))
    return report.exit_code


class _Progress:
    """The line of a terminal that says which checks run, until the next line takes its place."""

    def show(self, checks: tuple[Check, ...]) -> None:
        names = ", ".join(check.id for check in checks)
        sys.stdout.write(f"\r\x1b[K… {names}"[: text.WIDTH])
        sys.stdout.flush()

    def clear(self) -> None:
        sys.stdout.write("\r\x1b[K")
        sys.stdout.flush()


async def _until_terminated(main: Coroutine[Any, Any, CheckReport]) -> CheckReport:
    """Let SIGTERM end a run as Ctrl-C does: what was changed is put back first."""
    task, terminated = asyncio.current_task(), False
    assert task is not None

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    with contextlib.suppress(NotImplementedError):  # Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    try:
        return await main
    except asyncio.CancelledError:
        if terminated:
            raise KeyboardInterrupt from None
        raise


def _plan(options: CheckOptions, spell: Callable[[str], str]) -> CheckPlan:
    for name in ("tls_ca", "tls_cert", "tls_key", "server_name"):
        if getattr(options, name) and not options.tls:
            raise ConfigError(f"{spell(name)} needs --tls")
    if options.start is not None and options.stop is None:
        raise ConfigError(f"{spell('start')} needs --stop")
    for name in ("tls", "proxy_protocol", "hello", "until"):
        if getattr(options, name):
            options.target.require_stream(spell(name))
    if options.profile != "raw":
        options.target.require_stream(f"--profile {options.profile}")
    only = _names(options.only)
    if options.stop is not None and options.start is None and options.pid is None and "stop-load" not in only:
        raise ConfigError(f"{spell('stop')} needs --pid or --start")
    until = None if options.until is None else Until.parse(options.until)
    protocol = profile(options.profile, send=options.send, hello=options.hello, until=until)
    return CheckPlan(
        target=options.target,
        profile=options.profile,
        send=protocol.send,
        send_much=protocol.send_much,
        hello=protocol.hello,
        until=protocol.until,
        expect=(options.expect or "").encode(),
        begins=protocol.begins,
        polite=protocol.polite,
        tls=client_context(options.tls_ca, options.tls_cert, options.tls_key) if options.tls else None,
        server_name=options.server_name,
        proxy_protocol=options.proxy_protocol,
        pid=options.pid,
        restart=options.restart,
        stop=options.stop,
        start=options.start,
        only=only,
        skip=_names(options.skip),
        expect_fail=_names(options.expect_fail),
        strict=options.strict,
        fast=options.fast,
        timeout=options.timeout,
        idle_limit=options.idle_limit,
        heavy=options.yes,
    )


def _names(lists: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for names in lists for name in names.split(","))


def _rendered(report: CheckReport, form: str) -> str:
    if form == "json":
        return json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n"
    if form == "junit":
        return junit(report).decode()
    return _page()(report)


def _page() -> Callable[[CheckReport], str]:
    try:
        from greeter.conformance.page import page
    except ImportError as error:
        raise MissingExtra("--html", "report") from error
    return page


def _is_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _paint() -> text.Paint:
    """Colours for a terminal, unless NO_COLOR is set (no-color.org)."""
    if not _is_terminal() or os.environ.get("NO_COLOR"):
        return text.plain
    return lambda shown, colour: click.style(shown, fg=colour)

"""A run: learn what the service says, then ask it one thing after the other.

Invariants:

- After every check, a control client listens. If it is not greeted, nor 1 and 10 seconds later, the checks
  that follow are unsure, and say at which check the service stopped.
- A check has a time limit, and so has the run. A check that exceeds it is unsure.
- Off the loopback, only gentle checks run unless heavy ones are asked for, with at most 4 open connections.
  What waits in the background then comes after the others, as it does if silent clients hold the service up.
- What stops or reloads the service begins when nothing waits in the background: a connection that ends with
  the service says nothing of the service's deadlines.
- A service that was stopped is started again, if it is known how, however its check ends.
"""

from __future__ import annotations

import asyncio
import datetime
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from greeter import __version__
from greeter.conformance.applicability import excuse, require_consistent
from greeter.conformance.check_plan import CheckPlan
from greeter.conformance.check_report import CheckReport, Result
from greeter.conformance.checks import CHECKS, DATAGRAM_CHECKS, STREAM_CHECKS
from greeter.conformance.datagram_service import DatagramService
from greeter.conformance.findings import Ending, Finding, Verdict, skipped, unsure
from greeter.conformance.process import served_by, start_service
from greeter.conformance.tested_service import TestedService, dials
from greeter.core.endpoint import DEFAULT_HOST, Endpoint
from greeter.core.replies import Until
from greeter.errors import ConfigError, ConnectFailed, os_error_text

if TYPE_CHECKING:
    import ssl as ssl_module
    from collections.abc import Callable, Iterable

    from greeter.conformance.registry import Check
    from greeter.conformance.target_service import TargetService
    from greeter.core.proxy_protocol import ProxyVersion

    OnStart = Callable[[TargetService, tuple[Check, ...]], None]

# Pauses before the service is said to have stopped greeting, in seconds.
RETRIES = (0.0, 1.0, 10.0)
# The time limit of a run, in seconds, without the wait for what is in the background.
RUN_SECONDS = 90.0
# A check does not begin with less time than this left, in seconds.
LEAST_SECONDS = 0.5
# How much longer a background check may take than the service's limit that it waits for, in seconds.
BACKGROUND_SECONDS = 10.0
SYSCTLS = ("net/core/somaxconn", "net/ipv4/tcp_syncookies", "net/ipv4/tcp_max_syn_backlog")


async def check(
    target: str | int | Endpoint | None = DEFAULT_HOST,
    port: int | str | None = None,
    *,
    send: bytes = b"",
    hello: bytes = b"",
    until: Until | str = "eof",
    expect: bytes = b"",
    polite: bool = False,
    ssl: ssl_module.SSLContext | None = None,
    server_hostname: str | None = None,
    proxy_protocol: ProxyVersion | None = None,
    pid: int | None = None,
    restart: str | None = None,
    stop: str | None = None,
    start: str | None = None,
    only: Iterable[str] = (),
    skip: Iterable[str] = (),
    expect_fail: Iterable[str] = (),
    strict: bool = False,
    fast: bool = False,
    timeout: float = 5.0,
    idle_limit: float = 30.0,
    heavy: bool = False,
) -> CheckReport:
    """Check which clients a service loses, and why.

    Args:
        target: An Endpoint, the text of one, or a host, as for ``greeter.greet()``.
        port: A port number or a service name, if the target is a host.
        send: What a client says before it is greeted, if the service waits for that.
        hello: What a client says that speaks first; a line of junk by default.
        until: What ends the greeting, as for ``greeter.greet()``.
        expect: What the greeting must contain.
        polite: True if the protocol makes a client wait for the greeting (SMTP, FTP, MySQL).
        ssl: An SSLContext for TLS.
        server_hostname: The name to verify in the certificate, if it is not the target's host.
        proxy_protocol: The version of the PROXY header that every connection begins with.
        pid: The process that listens, for the checks that look at it.
        restart: A shell command that reloads the service.
        stop: A shell command that stops it.
        start: A shell command that starts it again.
        only: The ids of the checks to run; all that apply by default.
        skip: The ids of checks to leave out.
        expect_fail: The ids of checks that are known to fail: they pass, and a surprise fails.
        strict: True if a *should* counts as a *must*.
        fast: True to leave out the checks that wait in the background.
        timeout: How long a client waits for its greeting, in seconds.
        idle_limit: How long a service may keep an idle client, in seconds.
        heavy: True to run heavy checks against another machine too.

    Returns:
        The CheckReport. What the service breaks is in there, and raises nothing.

    Raises:
        ConfigError: An argument is invalid, or arguments contradict each other.

    Example::

        report = await greeter.check("127.0.0.1:9999", fast=True)
        assert not report.broken, report.headline
    """
    plan = CheckPlan(
        target=Endpoint.target(target, port),
        send=send,
        hello=hello,
        until=Until.parse(until),
        expect=expect,
        polite=polite,
        tls=ssl,
        server_name=server_hostname,
        proxy_protocol=proxy_protocol,
        pid=pid,
        restart=restart,
        stop=stop,
        start=start,
        only=tuple(only),
        skip=tuple(skip),
        expect_fail=tuple(expect_fail),
        strict=strict,
        fast=fast,
        timeout=timeout,
        idle_limit=idle_limit,
        heavy=heavy,
    )
    return await run(plan)


async def run(
    plan: CheckPlan,
    on_result: Callable[[Result], None] = lambda _: None,
    on_start: OnStart = lambda _service, _checks: None,
) -> CheckReport:
    """Run the checks of a plan.

    Args:
        plan: What to check, and how.
        on_result: Called with each result, as soon as it is there.
        on_start: Called with the service and the checks that begin, or that are waited for.

    Returns:
        The report.

    Raises:
        ConfigError: The plan contradicts itself, or its process does not listen at the target.
    """
    require_consistent(plan)
    started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    try:
        addresses = await dials(plan)
    except ConnectFailed as error:
        reason = str(error).rpartition(": ")[2]
        return CheckReport(
            str(plan.target),
            strict=plan.strict,
            reason=reason,
            started_at=started_at,
            environment=environment(),
            profile=plan.profile,
        )
    if plan.pid is not None:
        addresses = served_by(addresses, plan.pid)
    service = DatagramService(plan, addresses) if plan.datagrams else TestedService(plan, addresses)
    return await _Run(plan, service, on_result, on_start).run(started_at)


class _Run:
    def __init__(
        self,
        plan: CheckPlan,
        service: TargetService,
        on_result: Callable[[Result], None],
        on_start: OnStart,
    ) -> None:
        self._plan, self._service, self._on_result, self._on_start = plan, service, on_result, on_start
        self._checks = DATAGRAM_CHECKS if plan.datagrams else STREAM_CHECKS
        self._results: dict[str, Result] = {}
        self._background: dict[str, asyncio.Task[Result]] = {}
        self._stopped_at = ""  # the check after which the service greeted no more
        self._loop = asyncio.get_running_loop()
        self._start = self._loop.time()
        self._end = self._start + RUN_SECONDS

    async def run(self, started_at: str) -> CheckReport:
        self._require_a_check()
        reason = await self._learn()
        if not reason:
            try:
                if self._plan.datagrams:
                    await self._foreground(*self._asking)
                else:
                    await self._ask_streams()
                await self._foreground(*(check for check in self._checks.values() if check.lifecycle))
            finally:
                for task in self._background.values():
                    task.cancel()
                await asyncio.gather(*self._background.values(), return_exceptions=True)
        return CheckReport(
            str(self._plan.target),
            tuple(self._results[name] for name in self._checks if name in self._results),
            self._service.greeting,
            self._plan.strict,
            reason,
            started_at,
            self._loop.time() - self._start,
            environment(),
            self._plan.profile,
        )

    @property
    def _asking(self) -> list[Check]:
        """The checks that neither stop nor reload the service."""
        return [check for check in self._checks.values() if not check.lifecycle]

    async def _ask_streams(self) -> None:
        # What waits in the background wakes the service up.
        await self._foreground(CHECKS["wakes"])
        asking = self._asking
        silent = asking.index(CHECKS["silent"]) + 1
        await self._foreground(*asking[:silent])
        # A service that silent clients hold up would keep the clients of other checks waiting.
        held_up = self._found("silent") in (Verdict.FAIL, Verdict.UNSURE)
        beside = not self._service.gentle and not held_up
        if beside and not self._stopped_at:
            self._begin_background()
        await self._foreground(*asking[silent:])
        if not beside and not self._stopped_at:
            self._begin_background()
        await self._end_background()

    def _require_a_check(self) -> None:
        """Raise ConfigError if none of the checks that are asked for by name can run."""
        excuses = {name: self._excuse(CHECKS[name]) for name in self._plan.only}
        if excuses and all(excuses.values()):
            raise ConfigError(
                "no check to run: " + ", ".join(f"{name} ({excuses[name]})" for name in excuses)
            )

    async def _learn(self) -> str:
        """Run the check that the others build on. Returns why the service never greets; "" if it does.

        Of several addresses, the first that greets is the one that is checked.
        """
        reasons = []
        first = next(iter(self._checks.values()))
        for dial in self._service.dials:
            self._service.dial = dial
            self._on_start(self._service, (first,))
            result = await self._timed(first)
            if self._service.greeting:
                self._record(result)
                return ""
            reasons.append((Ending.REFUSED.value in result.finding.classes, result.finding.figure))
        return min(reasons, key=lambda reason: reason[0])[1]  # what is no refusal tells more

    async def _foreground(self, *checks: Check) -> None:
        for check in checks:
            if check.id in self._results or check.background and not self._excuse(check):
                continue
            if excuse := self._excuse(check):
                self._record(self._result(check, skipped(excuse)))
            elif self._stopped_at:
                self._record(self._result(check, self._after_the_end()))
            elif self._loop.time() > self._end - LEAST_SECONDS:
                self._record(self._result(check, unsure(f"no time is left of {RUN_SECONDS:g} s")))
            else:
                self._on_start(self._service, (check,))
                self._record(await self._timed(check))
                if "stop" in check.needs and self._plan.start is None:
                    self._stopped_at = check.id  # for good
                else:
                    await self._see_that_it_greets(check)

    def _found(self, name: str) -> Verdict | None:
        return self._results[name].finding.verdict if name in self._results else None

    def _begin_background(self) -> None:
        self._background = {
            check.id: asyncio.create_task(self._timed(check))
            for check in self._checks.values()
            if check.background and not self._excuse(check)
        }

    async def _end_background(self) -> None:
        begin = self._loop.time()
        waiting = tuple(CHECKS[name] for name in self._background if name not in self._results)
        if waiting:
            self._on_start(self._service, waiting)
        for check in waiting:
            self._record(await self._background[check.id])
        for check in self._checks.values():
            if check.background and check.id not in self._results:  # it could not begin any more
                self._record(self._result(check, self._after_the_end()))
        self._end += self._loop.time() - begin

    def _after_the_end(self) -> Finding:
        return unsure(f"the service stopped greeting at {self._stopped_at}")

    async def _timed(self, check: Check) -> Result:
        begin, service = self._loop.time(), self._service
        if check.background:
            end = begin + self._plan.idle_limit + BACKGROUND_SECONDS
        else:
            service.late = False
            end = min(begin + check.seconds, self._end)
        try:
            async with asyncio.timeout_at(end):
                finding = await check.run(service)
        except TimeoutError:
            finding = unsure(f"not done within {end - begin:.0f} s")
        except OSError as error:  # a process has ended that it looked at, or this one has no descriptor
            finding = unsure(os_error_text(error))
        finally:
            if service.stopped and self._plan.start is not None:
                start_service(self._plan.start)
            service.stopped = False
        return self._result(check, finding, self._loop.time() - begin)

    def _result(self, check: Check, finding: Finding, seconds: float = 0.0) -> Result:
        return Result(
            check,
            finding,
            seconds,
            check.id in self._plan.expect_fail,
            self._service.greeting,
        )

    async def _see_that_it_greets(self, check: Check) -> None:
        try:
            async with asyncio.timeout_at(self._end):
                for pause in RETRIES:
                    await asyncio.sleep(pause)
                    if (await self._service.control()).ending in (Ending.GREETED, Ending.RESET):
                        return
        except TimeoutError:
            return
        self._stopped_at = check.id
        for name, task in self._background.items():  # connections that end now do so with the service
            if task.done():
                self._record(task.result())
            else:
                task.cancel()
                self._record(self._result(CHECKS[name], self._after_the_end()))

    def _excuse(self, check: Check) -> str:
        return excuse(check, self._plan, self._service)

    def _record(self, result: Result) -> None:
        self._results[result.check.id] = result
        self._on_result(result)


def environment() -> dict[str, object]:
    """Returns the kernel, its settings that matter to an accept queue, and the versions."""
    sysctl = {}
    for name in SYSCTLS:
        try:
            sysctl[name.replace("/", ".")] = Path("/proc/sys", name).read_text().strip()
        except OSError:
            continue
    return {
        "greeter": __version__,
        "python": platform.python_version(),
        "kernel": f"{platform.system()} {platform.release()}",
        "sysctl": sysctl,
    }

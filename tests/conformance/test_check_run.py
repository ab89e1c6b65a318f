"""A run: what it learns, in which order it asks, and what bounds it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from greeter.conformance import CheckPlan, check
from greeter.conformance import check_run as check_run_module
from greeter.conformance.check_run import run
from greeter.conformance.findings import Verdict
from greeter.conformance.probe import Probe
from greeter.conformance.profiles import PROFILES
from greeter.conformance.tested_service import TestedService, dials
from greeter.core.endpoint import Endpoint
from greeter.core.replies import Until
from greeter.errors import ConfigError
from tests.conftest import PATIENCE, one_loop
from tests.support.loadtest_peers import refused_endpoint, serving
from tests.support.lossy_peers import blocking_loop
from tests.support.peers import until

if TYPE_CHECKING:
    from pathlib import Path

    from greeter.conformance.check_report import Result
    from greeter.conformance.registry import Check
    from greeter.conformance.target_service import TargetService
    from tests.support.loadtest_peers import Handler


def says(text: bytes, *, then_waits: bool = False) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(text)
        if then_waits:
            await reader.read()
        writer.write_eof()
        await reader.read()

    return handler


# -- a target that never greets


@pytest.mark.parametrize(
    ("said", "waits", "options", "reason"),
    [
        (b"", True, {}, "not a byte within 90 s; if it waits for a request, name that with --send or"),
        (b"", False, {}, "the end of the stream without a byte; it may want a request"),
        (b"SSH-2.0-x\r\n", True, {}, r"it said 'SSH-2.0-x\r\n', and did not end within 90 s; name"),
        (b"hello", False, {"expect": b"bye"}, "it said 'hello', without 'bye'"),
        (b"421 too many\r\n", False, {"begins": (b"2",)}, r"it refused: '421 too many\r\n'"),
        (b"hi", False, {"until": Until("bytes", size=4)}, "the end of the stream after 'hi'; it may"),
    ],
)
async def test_a_target_that_never_greets_is_told_why(
    said: bytes, waits: bool, options: dict[str, object], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = Probe._receive

    async def impatient(probe: Probe) -> bytes:
        """The deadline passes when the client has what is said and waits for more, however late that is."""
        if waits and probe.data == said:
            probe._deadline = asyncio.get_running_loop().time()
        return await receive(probe)

    monkeypatch.setattr(Probe, "_receive", impatient)
    async with serving(says(said, then_waits=waits)) as target:
        report = await run(CheckPlan(Endpoint.parse(target), timeout=90.0, **options))  # type: ignore[arg-type]
    assert (report.exit_code, report.results) == (1, ())
    assert report.reason.startswith(reason)
    assert "\n" not in report.headline


async def test_a_service_without_tls_is_no_tls_service() -> None:
    import ssl

    async with serving(says(b"hello")) as target:
        report = await check(target, ssl=ssl.create_default_context(), timeout=PATIENCE)
    assert report.reason.startswith("the TLS handshake failed: ")


async def test_a_name_that_is_not_found_never_greets() -> None:
    report = await check("no-such-name.invalid:9")
    assert (report.exit_code, report.results) == (1, ())
    assert report.to_json()["checks"] == []


def test_a_reply_that_refuses_is_not_the_greeting_of_a_mail_server() -> None:
    assert not b"554 no\r\n".startswith(PROFILES["smtp"].begins)
    assert b"220 hi\r\n".startswith(PROFILES["smtp"].begins)
    assert b"120 in 5 minutes\r\n".startswith(PROFILES["ftp"].begins)


async def test_the_first_address_that_greets_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def both(plan: CheckPlan) -> list[object]:
        refusing = CheckPlan(Endpoint.parse(refused_endpoint()))
        return [*await dials(refusing), *await dials(plan)]

    monkeypatch.setattr(check_run_module, "dials", both)
    async with serving(says(b"hello")) as target:
        report = await check(target, only=["end"])
    assert (report.exit_code, report.greeting) == (0, b"hello")


async def test_a_slow_service_is_asked_fewer_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greeter.conformance.checks.plain_clients.ENOUGH_SECONDS", 0.0)
    async with serving(says(b"hello")) as target:
        report = await check(target, only=["greets"])
    assert report.results[0].finding.figure.startswith("1 of 1, 5 B")


# -- what is asked


async def test_only_what_cannot_run_is_an_error_that_says_why() -> None:
    with pytest.raises(ConfigError, match=r"^no check to run: stop \(without --pid\), let-go \(left out by"):
        await check("127.0.0.1:9", only=["stop", "let-go"], fast=True)
    async with serving(says(b"hello")) as target:
        report = await check(target, only=["end", "stop"])
    assert report.exit_code == 0
    assert report.results[-1].finding.figure == "without --pid"


@one_loop
async def test_connections_that_wait_are_judged_before_a_reload() -> None:
    order: list[str] = []

    def note(result: Result) -> None:
        if result.finding.verdict is not Verdict.SKIPPED:
            order.append(result.check.id)

    async with serving(says(b"hello")) as target:
        plan = CheckPlan(
            Endpoint.parse(target), only=("let-go", "reload", "end"), restart="true", idle_limit=0.3
        )
        await run(plan, note)
    assert order == ["greets", "end", "let-go", "reload"]


@one_loop
async def test_wake_ups_are_counted_before_anything_waits() -> None:
    order: list[str] = []
    async with blocking_loop() as service:
        plan = CheckPlan(
            Endpoint.parse(service.target), only=("wakes", "end"), pid=service.pid, idle_limit=0.3
        )
        await run(plan, lambda result: order.append(result.check.id))
    assert order[:2] == ["greets", "wakes"]


@one_loop
@pytest.mark.thorough
async def test_another_machine_has_at_most_4_connections_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TestedService, "local", False)
    opened, most = 0, 0
    connect, close = Probe.connect, Probe.close

    async def counting_connect(probe: Probe) -> None:
        nonlocal opened, most
        opened += 1
        most = max(most, opened)
        await connect(probe)

    def counting_close(probe: Probe) -> None:
        nonlocal opened
        opened -= not probe.closed
        close(probe)

    monkeypatch.setattr(Probe, "connect", counting_connect)
    monkeypatch.setattr(Probe, "close", counting_close)
    async with serving(says(b"hello")) as target:
        report = await check(target, idle_limit=0.5)
    assert (opened, most) == (0, 4)
    found = {result.check.id: result.finding for result in report.results}
    assert found["silent"].figure == "3 of 3 greeted beside 3 silent"
    assert found["burst"].figure == "heavy, and the target is not this machine: --yes runs it"
    assert found["let-go"].verdict is Verdict.FAIL  # it was run, after the others


async def test_a_run_has_a_time_limit_that_no_check_exceeds(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = check_run_module._Run._timed

    async def timed_at_the_end(run: check_run_module._Run, check: Check) -> Result:
        assert run._end - run._start == pytest.approx(check_run_module.RUN_SECONDS)
        if check.id == "reload":  # so much of the run's time is left, however long the checks before took
            run._end = asyncio.get_running_loop().time() + 1.0
        return await timed(run, check)

    monkeypatch.setattr(check_run_module._Run, "_timed", timed_at_the_end)
    async with serving(says(b"hello")) as target:
        report = await check(target, restart="sleep 100", only=["reload", "end"])
    reload = next(result for result in report.results if result.check.id == "reload")
    assert reload.finding.verdict is Verdict.UNSURE
    assert reload.finding.figure == "not done within 1 s"
    assert report.exit_code == 98


@one_loop
async def test_what_waits_when_the_service_ends_is_unsure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_run_module, "RETRIES", (0.0,))
    monkeypatch.setattr("greeter.conformance.checks.idle.LOOKS", (10 * PATIENCE,))
    clients = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal clients
        clients += 1
        await says(b"hello" if clients < 40 else b"go away")(reader, writer)

    async with serving(handler) as target:
        report = await check(target, only=["speaks-first", "let-go"], idle_limit=20 * PATIENCE)
    found = {result.check.id: result.finding for result in report.results}
    assert found["let-go"].verdict is Verdict.UNSURE
    assert found["let-go"].figure == "the service stopped greeting at speaks-first"
    assert report.duration_s < 10 * PATIENCE  # no connection is waited for


async def test_a_service_is_started_again_also_if_its_check_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeout_at, timeouts = asyncio.timeout_at, list[asyncio.Timeout]()
    services: list[TargetService] = []

    def watched(when: float) -> asyncio.Timeout:
        timeouts.append(timeout_at(when))
        return timeouts[-1]

    def note(service: TargetService, _checks: tuple[Check, ...]) -> None:
        services.append(service)
        timeouts.clear()  # the next one is that of the check

    monkeypatch.setattr(asyncio, "timeout_at", watched)
    started = tmp_path / "started"
    async with blocking_loop() as service:
        plan = CheckPlan(
            Endpoint.parse(service.target), stop="sleep 100", start=f": > {started}", only=("stop-load",)
        )
        running = asyncio.create_task(run(plan, on_start=note))
        await until(lambda: bool(services) and services[-1].stopped, "the service is told to stop")
        timeouts[0].reschedule(asyncio.get_running_loop().time())
        await running
        await until(started.exists, "the service is started")

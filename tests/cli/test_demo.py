"""The demo: a server and a client, then a thousand clients at once, then a load test."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from greeter import ConnectFailed, MissingExtra, Reply
from greeter.cli import cli, demo
from greeter.cli.demo import CHECKED, SPARE_FDS, run_demo
from greeter.conformance.check_report import CheckReport, Result
from greeter.conformance.checks import CHECKS
from greeter.conformance.findings import Finding, Verdict
from tests.conftest import loop_factories

if TYPE_CHECKING:
    from greeter.system.loops import LoopName

LOOPS = pytest.mark.parametrize("loop", list(loop_factories()))


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "LOAD_SECONDS", 0.1)
    monkeypatch.setattr(demo, "CHECKED", ("half-close",))


def lines_of(clients: int, loop: LoopName = "asyncio") -> tuple[int, list[str]]:
    lines: list[str] = []
    return run_demo(lines.append, clients=clients, loop=loop), lines


@LOOPS
def test_the_demo_shows_server_client_load_test_and_checks(
    loop: LoopName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "CHECKED", CHECKED)
    code, lines = lines_of(30, loop)
    assert code == 0
    address = lines[0].removeprefix("$ greeter serve --listen ")
    assert re.fullmatch(r"127\.0\.0\.1:\d+", address)
    assert lines[1].startswith(f"Listening on {address} ({loop}, ")
    assert re.fullmatch(r"Got a connection from \('127\.0\.0\.1', \d+\)", lines[2])
    assert lines[3:7] == ["", f"$ greeter greet {address}", "Thank you for connecting", ""]
    assert lines[7] == "30 clients at once:"
    assert re.fullmatch(r"  greeted   30 in \d+\.\d\d s \([\d,]+ a second\)", lines[8])
    assert re.fullmatch(
        r"  greeting  p50 [\d.]+ ms, p99 [\d.]+ ms, max [\d.]+ ms after the start of all", lines[9]
    )
    assert lines[10:13] == ["  failed    0", "", f"$ greeter load {address} --duration 0.1s"]
    assert any("greeted" in line for line in "\n".join(lines[13:]).splitlines())
    assert lines[-5:-3] == ["", f"$ greeter check {address} --only speaks-first,half-close"]
    speaks, half = (line.split(None, 1)[1] for line in lines[-2:])
    assert re.fullmatch(r"[✓?] .*[✗?] 44 of 44 reset", speaks)
    assert re.fullmatch(r"[✓?] .*[✓?] 40 of 40 greeted", half)


def test_the_command_greets_a_thousand_clients(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run(["demo"])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert "\nThank you for connecting\n" in out
    assert "\n1,000 clients at once:\n  greeted   1,000 in " in out
    assert "\n  failed    0\n" in out


def test_without_the_extra_there_is_no_load_test(monkeypatch: pytest.MonkeyPatch) -> None:
    async def load(*_: object, **__: object) -> None:
        raise MissingExtra("greeter load", "load")

    monkeypatch.setattr(demo, "load", load)
    code, lines = lines_of(3)
    assert code == 0
    assert lines[-5].startswith(
        "(Left out: greeter load needs an optional package: pip install '.[load]' in "
    )


@pytest.mark.parametrize(("verdict", "code"), [(Verdict.UNSURE, 0), (Verdict.PASS, 0), (Verdict.FAIL, 1)])
def test_only_a_broken_check_is_a_failure(
    verdict: Verdict, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(target: object, **_: object) -> CheckReport:
        results = [Result(CHECKS[name], Finding(verdict, "a figure")) for name in demo.CHECKED]
        return CheckReport(str(target), tuple(results))

    monkeypatch.setattr(demo, "check", check)
    assert lines_of(3)[0] == code


def test_the_descriptor_limit_bounds_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "raise_fd_limit", lambda: SPARE_FDS + 2 * 7)
    code, lines = lines_of(30)
    assert (code, lines[0]) == (0, "(The descriptor limit is 64, which is enough for 7 clients at once.)")
    assert "7 clients at once:" in lines


def test_without_a_descriptor_limit_all_clients_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "raise_fd_limit", lambda: None)
    assert lines_of(3)[0] == 0


def test_failures_are_shown_by_class() -> None:
    hello = b"Thank you for connecting"
    results: list[Reply | BaseException] = [
        Reply(hello, "x:1", 0.001, 0.002, 0.003),
        Reply(hello, "x:1", 0.001, 0.002, 0.003, reset=True),
        Reply(b"Thank", "x:1", 0.001, 0.002, 0.003),
        ConnectFailed("x:1", "refused"),
        ConnectFailed("x:1", "refused"),
        OSError(24, "Too many open files"),
    ]
    lines: list[str] = []
    assert demo._summarize(lines.append, results, 0.5, hello) == 1
    assert lines == [
        "6 clients at once:",
        "  greeted   1 in 0.50 s (2 a second)",
        "  greeting  p50 3.0 ms, p99 3.0 ms, max 3.0 ms after the start of all",
        "  failed    5",
        "    ConnectFailed: 2",
        "    OSError: 1",
    ]
    lines.clear()
    assert demo._summarize(lines.append, results[3:4], 0.5, hello) == 1
    assert lines[1:] == ["  greeted   0 in 0.50 s (0 a second)", "  failed    1", "    ConnectFailed: 1"]

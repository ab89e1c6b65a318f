"""The demo: the primer's two terminals, then a thousand clients at once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from greeter import ConnectFailed, MissingExtra, Reply
from greeter.cli import cli, demo
from greeter.cli.demo import SPARE_FDS, run_demo
from tests.conftest import loop_factories

if TYPE_CHECKING:
    from greeter.system.loops import LoopName

LOOPS = pytest.mark.parametrize("loop", list(loop_factories()))


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "LOAD_SECONDS", 0.1)


def lines_of(clients: int, loop: LoopName = "asyncio") -> tuple[int, list[str]]:
    said: list[str] = []
    return run_demo(said.append, clients=clients, loop=loop), said


@LOOPS
def test_it_shows_what_the_primer_shows(loop: LoopName) -> None:
    code, said = lines_of(30, loop)
    assert code == 0
    address = said[0].removeprefix("$ greeter serve --listen ")
    assert re.fullmatch(r"127\.0\.0\.1:\d+", address)
    assert said[1].startswith(f"Listening on {address} ({loop}, ")
    assert re.fullmatch(r"Got a connection from \('127\.0\.0\.1', \d+\)", said[2])
    assert said[3:7] == ["", f"$ greeter greet {address}", "Thank you for connecting", ""]
    assert said[7] == "30 clients at once:"
    assert re.fullmatch(r"  greeted   30 in \d+\.\d\d s \([\d,]+ a second\)", said[8])
    assert re.fullmatch(
        r"  greeting  p50 [\d.]+ ms, p99 [\d.]+ ms, max [\d.]+ ms after the start of all", said[9]
    )
    assert said[10:13] == ["  failed    0", "", f"$ greeter load {address} --duration 0.1s"]
    assert any("greeted" in line for line in "\n".join(said[13:]).splitlines())


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run(["demo"])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert "\nThank you for connecting\n" in out
    assert "\n1,000 clients at once:\n  greeted   1,000 in " in out
    assert "\n  failed    0\n" in out


def test_without_the_extra_the_load_test_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def load(*_: object, **__: object) -> None:
        raise MissingExtra("greeter load", "load")

    monkeypatch.setattr(demo, "load", load)
    code, said = lines_of(3)
    assert code == 0
    assert said[-1].startswith("(Left out: greeter load needs an optional package: pip install '.[load]' in ")


def test_few_descriptors_are_few_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "raise_fd_limit", lambda: SPARE_FDS + 2 * 7)
    code, said = lines_of(30)
    assert (code, said[0]) == (0, "(The descriptor limit is 64, which is enough for 7 clients at once.)")
    assert "7 clients at once:" in said


def test_no_limit_of_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "raise_fd_limit", lambda: None)
    assert lines_of(3)[0] == 0


def test_failures_are_told_and_counted() -> None:
    hello = b"Thank you for connecting"
    results: list[Reply | BaseException] = [
        Reply(hello, "x:1", 0.001, 0.002, 0.003),
        Reply(hello, "x:1", 0.001, 0.002, 0.003, reset=True),
        Reply(b"Thank", "x:1", 0.001, 0.002, 0.003),
        ConnectFailed("x:1", "refused"),
        ConnectFailed("x:1", "refused"),
        OSError(24, "Too many open files"),
    ]
    said: list[str] = []
    assert demo._summarise(said.append, results, 0.5, hello) == 1
    assert said == [
        "6 clients at once:",
        "  greeted   1 in 0.50 s (2 a second)",
        "  greeting  p50 3.0 ms, p99 3.0 ms, max 3.0 ms after the start of all",
        "  failed    5",
        "    ConnectFailed: 2",
        "    OSError: 1",
    ]
    said.clear()
    assert demo._summarise(said.append, results[3:4], 0.5, hello) == 1
    assert said[1:] == ["  greeted   0 in 0.50 s (0 a second)", "  failed    1", "    ConnectFailed: 1"]

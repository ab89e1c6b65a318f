"""Signals to a service take effect in order, and not before it is ready."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from greeter.system.signals import Signals
from tests.conftest import PATIENCE, greeter_process
from tests.support.peers import Outcome, read_to_end, until
from tests.support.service_peers import HELLO

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The parent imports it first. Workers import it later, and block until the test lets them start.
APP = """
import pathlib, time
here = pathlib.Path(__file__).parent
if (here / "parent").exists():
    (here / "worker").touch()
    while not (here / "go").exists():
        time.sleep(0.01)
(here / "parent").touch()
greeting = "Thank you for connecting"
"""


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture(autouse=True)
def _handlers_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def install(calls: list[str]) -> Signals:
    return Signals(lambda: calls.append("reload"), lambda name: calls.append(f"force exit {name}"))


def send(number: int) -> None:
    os.kill(os.getpid(), number)


async def test_the_second_stop_exits_at_once(calls: list[str]) -> None:
    signals = install(calls)
    signals.service_started()
    send(signal.SIGINT)
    async with asyncio.timeout(PATIENCE):
        assert await signals.stop == "SIGINT"
    assert calls == []
    send(signal.SIGTERM)
    await until(lambda: calls == ["force exit SIGTERM"], "the second one")


async def test_an_early_reload_takes_effect_when_ready(calls: list[str]) -> None:
    signals = install(calls)
    send(signal.SIGHUP)
    send(signal.SIGTERM)  # when this one has arrived, so has SIGHUP
    async with asyncio.timeout(PATIENCE):
        await signals.stop
    assert calls == []
    early = install(calls)
    send(signal.SIGHUP)
    await until(lambda: early._reload_pending, "SIGHUP has arrived")
    early.service_started()
    assert calls == ["reload"]
    send(signal.SIGHUP)
    await until(lambda: calls == ["reload"] * 2, "a later one")


async def test_a_reload_after_a_stop_is_ignored() -> None:
    async with greeter_process("serve", "--listen", "127.0.0.1:0", "--stop-delay", "0.3") as service:
        service.process.send_signal(signal.SIGTERM)
        await service.line_with("serving for another 0.3 s")
        service.process.send_signal(signal.SIGHUP)
        assert await service.ended() == 0
    assert not [line for line in service.lines if "eload" in line]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_while_workers_start_greets_queued_connections(
    number: signal.Signals, tmp_path: Path
) -> None:
    """A connection in the accept queue is greeted, and the exit code is 0."""
    (tmp_path / "slow.py").write_text(APP)
    path = tmp_path / "socket"
    args = ("serve", "--workers", "2", "--app", "slow:greeting", "--listen", f"unix:{path}")
    async with greeter_process(*args, ready="", env={"PYTHONPATH": str(tmp_path)}) as service:
        await until((tmp_path / "worker").exists, "a worker starts")
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        client.setblocking(False)
        service.process.send_signal(signal.SIGHUP)
        service.process.send_signal(number)
        (tmp_path / "go").touch()
        assert await read_to_end(client) == Outcome(HELLO, reset=False)
        assert await service.ended() == 0
    assert service.lines[-1] == "Stopped: 1 greeted of 1 accepted, 0 failed"
    assert os.listdir(tmp_path).count("socket") == 0

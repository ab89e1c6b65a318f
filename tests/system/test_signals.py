"""Signals to a service take effect in order, and not before it is ready."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from greeter import greet
from greeter.system.signals import SAME_REQUEST_SECONDS, Signals
from tests.conftest import PATIENCE, greeter_process, one_loop
from tests.support.peers import Outcome, connect, read_to_end, until
from tests.support.service_peers import HELLO, children, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = one_loop

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


async def test_a_stop_that_is_delivered_twice_is_one(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    signals = install(calls)
    signals.service_started()
    now = 100.0
    monkeypatch.setattr("greeter.system.signals.monotonic", lambda: now)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        send(number)
        await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        assert await signals.stop in ("SIGINT", "SIGTERM")
    now += SAME_REQUEST_SECONDS - 0.01
    await deliver(signal.SIGTERM)
    assert calls == []
    now += 0.01
    await deliver(signal.SIGTERM)
    assert calls == ["force exit SIGTERM"]


async def deliver(number: int) -> None:
    """Send a signal to this process, and wait until the loop has handled it."""
    handled = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, handled.set)
    send(number)
    send(signal.SIGUSR1)
    async with asyncio.timeout(PATIENCE):
        await handled.wait()
    loop.remove_signal_handler(signal.SIGUSR1)


async def test_no_signal_matters_after_the_stop(calls: list[str]) -> None:
    signals = install(calls)
    send(signal.SIGTERM)
    async with asyncio.timeout(PATIENCE):
        await signals.stop
    signals.close()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        send(number)  # its default action would end this process
    assert calls == []
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL


# Its process sends itself every signal at the very end, when the interpreter has reset the handlers.
LATE = """
import os, signal, sys
class Late:
    def __del__(self, kill=os.kill, pid=os.getpid(), numbers=(1, 2, 10, 12, 15)):
        for number in numbers:
            kill(pid, number)
sys.late = Late()
greeting = "Thank you for connecting"
"""


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_signal_at_the_very_end_changes_no_exit_code(workers: str, tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(LATE)
    args = ("serve", "--listen", "127.0.0.1:0", "--workers", workers, "--app", "late:greeting")
    async with greeter_process(*args, env={"PYTHONPATH": str(tmp_path)}) as service:
        assert await service.stop() == 0
    assert service.lines[-1] == "Stopped: 0 greeted of 0 accepted, 0 failed"
    assert not [line for line in service.lines if line.startswith("error")]


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_signal_without_a_meaning_changes_nothing(workers: str) -> None:
    args = ("serve", "--listen", "127.0.0.1:0", "--workers", workers, "--no-access-log")
    async with greeter_process(*args) as service:
        for pid in (service.pid, *children(service.pid)):
            os.kill(pid, signal.SIGUSR1)
            os.kill(pid, signal.SIGUSR2)
        assert (await greet(port=service.port)).data == HELLO
        assert await service.stop() == 0
    assert service.lines[-1] == "Stopped: 1 greeted of 1 accepted, 0 failed"
    assert not [line for line in service.lines if line.startswith("error")]


async def test_an_ignored_sigint_does_not_stop_a_service() -> None:
    """As ``greeter serve &`` in a script, whose terminal sends SIGINT to every process of its group."""
    command = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.executable, "
    )
    command += "[sys.executable, '-m', 'greeter', 'serve', '--listen', '127.0.0.1:0'])"
    async with running(sys.executable, "-c", command) as service:
        service.process.send_signal(signal.SIGINT)
        assert (await greet(port=service.port)).data == HELLO
        assert await service.stop() == 0
    assert "SIGTERM: stopping: no new clients, finishing open connections" in service.lines


async def test_a_stop_of_every_process_is_one_stop(tmp_path: Path) -> None:
    """As systemd's default KillMode and pkill(1) deliver it, also while the workers start."""
    (tmp_path / "slow.py").write_text(APP)
    args = ("serve", "--workers", "2", "--app", "slow:greeting", "--listen", "127.0.0.1:0")
    async with greeter_process(*args, ready="", env={"PYTHONPATH": str(tmp_path)}) as service:
        await until((tmp_path / "worker").exists, "a worker starts")
        for _ in range(10):
            for pid in (*children(service.pid), service.pid):
                os.kill(pid, signal.SIGTERM)
        (tmp_path / "go").touch()
        assert await service.ended() == 0
    assert service.lines[-1] == "Stopped: 0 greeted of 0 accepted, 0 failed"
    assert not [line for line in service.lines if "worker" in line and "Listening" not in line]


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
    options = ("--stop-delay", "0.3", "--linger-timeout", "600", "--drain-timeout", "600")
    async with greeter_process("serve", "--listen", "127.0.0.1:0", *options) as service:
        with await connect(service.port) as client:  # it does not end before this one has left
            assert await asyncio.get_running_loop().sock_recv(client, 99) == HELLO
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

"""Stops, starts and reloads under load: connected clients are greeted, and none is refused needlessly."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import stat
import struct
import sys
import time
from typing import TYPE_CHECKING

import pytest

from greeter import greet
from greeter.system.listeners import HANDSHAKE_GRACE
from greeter.system.signals import SAME_REQUEST_SECONDS
from tests.conftest import PATIENCE, Process, greeter_process, loop_factories, one_loop
from tests.support.datagram_peers import client
from tests.support.peers import Outcome, connect, read_to_end, until
from tests.support.service_peers import (
    HELLO,
    LONG_STOP_DELAY,
    children,
    crowd,
    lines_with,
    on_every_stage,
    running,
    started_by_init,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The loops under test are those of the services, not the one that watches them.
pytestmark = one_loop

BACKLOG = 512  # of the socket that systemd keeps
LOOPS = list(loop_factories())


def serving(*args: str, env: dict[str, str] | None = None) -> contextlib.AbstractAsyncContextManager[Process]:
    return greeter_process("serve", "--listen", "127.0.0.1:0", "--no-access-log", *args, env=env)


def last_line(service: Process) -> str:
    return service.lines[-1]


# -- a stop ----------------------------------------------------------------------------------------------


@pytest.mark.thorough
async def test_ten_stops_on_each_path_under_load_lose_nobody() -> None:
    async def play(loop: str, path: str) -> None:
        for _ in range(10 // len(LOOPS)):
            async with serving("--loop", loop, "--accept", path) as service, crowd(service.port) as clients:
                await clients.more(150)
                assert await service.stop() == 0
                clients.give_up()
            assert clients.lost == []
            assert clients.refused > 0, "the stop came while they were there"
            heard = clients.greeted
            assert last_line(service) == f"Stopped: {heard} greeted of {heard} accepted, 0 failed"

    await on_every_stage(play)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_stop_without_descriptors_greets_the_whole_queue(workers: str) -> None:
    async def play(loop: str, path: str) -> None:
        args = ("serve", "--listen", "127.0.0.1:0", "--no-access-log", "--loop", loop, "--accept", path)
        async with started_by_init(*args, "--workers", workers, files=64) as service:
            with contextlib.ExitStack() as held:
                clients = [held.enter_context(await connect(service.port)) for _ in range(120)]
                await service.line_with("connections: accepting is paused")
                service.process.send_signal(signal.SIGTERM)
                await service.line_with("stopping: no new clients, finishing open connections")
                await asyncio.sleep(2 * HANDSHAKE_GRACE)  # they stay for longer than handshakes may complete
                for client in clients:
                    assert await read_to_end(client) == Outcome(HELLO, reset=False)
                    client.close()
            assert await service.ended() == 0
        assert last_line(service) == "Stopped: 120 greeted of 120 accepted, 0 failed"

    await on_every_stage(play)


async def kill_workers(service: Process, count: int) -> None:
    """Kill all workers, and wait until that is noticed."""
    await until(lambda: len(children(service.pid)) == count, "all workers run")
    for pid in children(service.pid):
        os.kill(pid, signal.SIGKILL)
    await lines_with(service, "was killed by SIGKILL", count)


# It starts slowly from the second time on.
SLOW_APP = """
import os, time

started = os.path.join(os.path.dirname(__file__), "started")
if os.path.exists(started):
    time.sleep(0.3)

def hello(peer):
    return "Hello"
"""


async def test_a_stop_while_no_worker_serves_greets_the_clients_that_are_in_the_queue(tmp_path: Path) -> None:
    """Whether the next worker is starting already, or waits to be started."""
    (tmp_path / "slow_app.py").write_text(SLOW_APP)
    listen = ("--listen", "127.0.0.1:0", "--listen", f"unix:{tmp_path}/socket", "--listen", "udp:127.0.0.1:0")
    args = ("--workers", "2", "--app", "slow_app:hello", "--no-access-log", "--loop", LOOPS[-1])
    for starting in (False, True):
        async with greeter_process("serve", *listen, *args, env={"PYTHONPATH": str(tmp_path)}) as service:
            udp = int((await service.line_with("Listening on udp:")).split()[2].rpartition(":")[2])
            (tmp_path / "started").touch()
            await kill_workers(service, 2)
            if starting:
                await until(lambda: bool(children(service.pid)), "another one starts")
            with (
                await connect(service.port) as tcp,
                socket.socket(socket.AF_UNIX) as unix,
                client(("127.0.0.1", udp)) as asking,
            ):
                unix.setblocking(False)
                unix.connect(f"{tmp_path}/socket")
                asking.send(bytes(100))
                service.process.send_signal(signal.SIGTERM)
                for sock in (tcp, unix):
                    assert await read_to_end(sock) == Outcome(b"Hello", reset=False)
                assert await asyncio.get_running_loop().sock_recv(asking, 100) == b"Hello"
            assert await service.ended() == 0
        (tmp_path / "started").unlink()
        assert last_line(service).startswith("Stopped: 2 greeted of 2 accepted, 0 failed")


BROKEN_APP = """
import os

if os.path.exists(os.path.join(os.path.dirname(__file__), "started")):
    raise ValueError("no greeting any more")

def hello(peer):
    return "Hello"
"""


@pytest.mark.thorough
async def test_a_stop_does_not_wait_for_workers_that_cannot_start(tmp_path: Path) -> None:
    """No longer than the drain deadline, and not at all without clients."""
    (tmp_path / "broken_app.py").write_text(BROKEN_APP)
    env = {"PYTHONPATH": str(tmp_path)}
    for waiting, timeout in ((True, "0.1"), (False, "1000")):
        async with serving(
            "--workers", "2", "--app", "broken_app:hello", "--drain-timeout", timeout, env=env
        ) as service:
            (tmp_path / "started").touch()
            await kill_workers(service, 2)
            await service.line_with("no greeting any more")
            with contextlib.ExitStack() as held:
                if waiting:
                    sock = held.enter_context(await connect(service.port))
                assert await service.stop() == 0
                if waiting:
                    assert (await read_to_end(sock)).reset
        (tmp_path / "started").unlink()
        told = "error: no worker became ready within 2.1 s: the clients in the accept queue are reset"
        assert (told in service.lines) is waiting


# Takes every descriptor that is left, and goes on when the file "go" is there.
GREEDY_APP = """
import asyncio, os

held = []

async def hello(peer):
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        os.write(2, b"no descriptor is left\\n")
    while not os.path.exists(os.path.join(os.path.dirname(__file__), "go")):
        await asyncio.sleep(0.01)
    return "Hello"
"""


async def test_an_app_that_leaves_no_descriptor_costs_no_client_at_a_stop(tmp_path: Path) -> None:
    (tmp_path / "greedy_app.py").write_text(GREEDY_APP)
    env = {"PYTHONPATH": str(tmp_path)}
    for loop in LOOPS:
        args = ("--listen", "127.0.0.1:0", "--app", "greedy_app:hello", "--loop", loop)
        async with started_by_init("serve", *args, files=64, env=env) as service:
            with await connect(service.port) as client:
                await service.line_with("no descriptor is left")
                service.process.send_signal(signal.SIGTERM)
                await service.line_with("stopping: no new clients, finishing open connections")
                await asyncio.sleep(2 * HANDSHAKE_GRACE)  # the listening socket is being closed
                (tmp_path / "go").touch()
                assert await read_to_end(client) == Outcome(b"Hello", reset=False)
            assert await service.ended() == 0
        assert last_line(service) == "Stopped: 1 greeted of 1 accepted, 0 failed"
        (tmp_path / "go").unlink()


async def test_stuck_clients_do_not_outlast_the_drain_deadline(tmp_path: Path) -> None:
    """Some never read a greeting that is too large for the kernel, others never close."""
    (tmp_path / "large").write_bytes(b"g" * 4_000_000)
    args = ["--greeting-file", f"{tmp_path}/large", "--linger-timeout", "600", "--greet-timeout", "600"]
    args += ["--drain-timeout", "2"]

    async def play(loop: str, path: str) -> None:
        async with serving(*args, "--loop", loop, "--accept", path) as service:
            with contextlib.ExitStack() as held:
                for size in (4096, 8_000_000):
                    for _ in range(5):
                        sock = held.enter_context(await connect(service.port, receive_buffer=size))
                        assert await asyncio.get_running_loop().sock_recv(sock, 1) == b"g"
                begun = time.monotonic()
                assert await service.stop() == 0  # within PATIENCE; any other time-out is ten minutes
                assert time.monotonic() - begun >= 2
        assert "warning: aborted 10 connections at the drain deadline" in service.lines
        assert last_line(service).startswith("Stopped: ")

    await on_every_stage(play)


async def test_a_delayed_stop_goes_on_serving(tmp_path: Path) -> None:
    (tmp_path / "delay_app.py").write_text(LONG_STOP_DELAY)

    async def play(loop: str, path: str) -> None:
        over = tmp_path / f"{loop}-{path}"
        env = {"PYTHONPATH": str(tmp_path), "OVER": str(over)}
        args = ("--loop", loop, "--accept", path, "--app", "delay_app:hello", "--stop-delay", "0.123")
        async with serving(*args, env=env) as service, crowd(service.port, clients=5) as clients:
            await clients.more(5)
            service.process.send_signal(signal.SIGTERM)
            await service.line_with("SIGTERM: serving for another 0.123 s")
            await clients.more(10)
            assert clients.refused == 0
            over.touch()
            assert await service.ended() == 0
            clients.give_up()
        assert clients.lost == []
        assert "SIGTERM: stopping: no new clients, finishing open connections" in service.lines

    await on_every_stage(play)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_does_not_wait_for_the_delay(second: signal.Signals) -> None:
    async with serving("--stop-delay", "600") as service:
        service.process.send_signal(signal.SIGINT)
        await service.line_with("serving for another 600 s")
        await asyncio.sleep(SAME_REQUEST_SECONDS)
        assert await service.stop(second) == 130


# -- sockets that systemd keeps --------------------------------------------------------------------------


@pytest.fixture
def door() -> Iterator[socket.socket]:
    """A listening socket as systemd keeps one: it stays open between services."""
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as sock:
        yield sock


def queue_length(door: socket.socket) -> int:
    """How many connections the kernel queues for a listening socket; TCP_INFO calls it tcpi_sacked."""
    return int(struct.unpack_from("I", door.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 28)[0])


@pytest.mark.thorough
async def test_restarts_on_a_socket_of_systemd_lose_and_refuse_nobody(
    door: socket.socket, accept: str
) -> None:
    total = 0
    async with crowd(door.getsockname()[1]) as clients:
        for turn in range(6):
            args = ("serve", "--accept", accept, "--loop", LOOPS[turn % len(LOOPS)], "--no-access-log")
            async with started_by_init(*args, sockets=(door,)) as service:
                assert service.port == door.getsockname()[1]
                assert queue_length(door) == BACKLOG  # a service must not shorten what is not its own
                if turn < 5:
                    await clients.more(100)
                else:  # those who came after the fifth stop wait in the queue
                    clients.leave()
                    await until(lambda: clients.present == 0, "everybody has left")
                assert await service.stop() == 0
            greeted, accepted = last_line(service).removeprefix("Stopped: ").split(" greeted of ")
            assert accepted == f"{greeted} accepted, 0 failed"
            total += int(greeted)
            assert queue_length(door) == BACKLOG
    assert clients.lost == []
    assert clients.refused == 0
    assert clients.greeted == total


ACTIVATE = shutil.which("systemd-socket-activate")


@pytest.mark.one_interpreter
@pytest.mark.skipif(ACTIVATE is None, reason="systemd-socket-activate is not installed")
async def test_the_activator_of_systemd_starts_it_for_the_first_client(tmp_path: Path) -> None:
    assert ACTIVATE is not None
    path = f"{tmp_path}/door"
    command = (ACTIVATE, "-l", path, "-E", "PATH", sys.executable, "-m", "greeter", "serve")
    async with running(*command, ready="Listening on ") as service:
        assert (await greet(path=path)).data == HELLO
        await service.line_with(f"Listening on unix:{path} (")
        assert (await greet(path=path)).data == HELLO
        assert await service.stop() == 0
    assert os.listdir(tmp_path) == ["door"], "the socket is not ours to remove"
    assert last_line(service) == "Stopped: 2 greeted of 2 accepted, 0 failed"


# -- a reload --------------------------------------------------------------------------------------------


def replace(path: Path, data: bytes) -> None:
    """Write a file the way deployments do: it is the old one or the new one, never a half."""
    path.with_suffix(".new").write_bytes(data)
    path.with_suffix(".new").rename(path)


async def test_reloads_under_load_lose_nobody_and_the_last_greeting_counts(
    accept: str, tmp_path: Path
) -> None:
    file = tmp_path / "greeting"
    words = [b"greeting number %d" % number for number in range(6)]
    file.write_bytes(words[0])
    async with serving("--greeting-file", str(file), "--accept", accept) as service:
        async with crowd(service.port, clients=30, whole=lambda heard, _: heard in words) as clients:
            for number in range(1, 6):
                await clients.more(50)
                replace(file, words[number])
                service.process.send_signal(signal.SIGHUP)
                await lines_with(service, "Reloaded", number)
                assert (await greet(port=service.port)).data == words[number]
        assert await service.stop() == 0
    assert clients.lost == []
    assert clients.refused == 0
    greeted = clients.greeted + 5
    assert last_line(service) == f"Stopped: {greeted} greeted of {greeted} accepted, 0 failed"


async def test_a_reload_that_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    config, greeting = tmp_path / "greeter.toml", tmp_path / "greeting"
    greeting.write_bytes(b"the old one")
    config.write_text(f"greeting-file = '{greeting}'\nmax-per-ip = 5\n")
    async with serving("--config", str(config)) as service:

        async def reload(text: str, says: str, count: int = 1) -> bytes:
            replace(config, text.encode())
            service.process.send_signal(signal.SIGHUP)
            await lines_with(service, says, count)
            return (await greet(port=service.port)).data

        failed = "error: reload failed, the old configuration stays: "
        assert await reload(f"greeting-file = '{tmp_path}/none'\n", f"{failed}cannot read") == b"the old one"
        assert await reload("max-per-ip = 'x'\n", failed, 2) == b"the old one"
        assert (
            await reload("max-per-up = 5\n", f"{failed}{config}: unknown key 'max-per-up'") == b"the old one"
        )
        assert await reload("greeting = 'new'\n", "Reloaded") == b"new"
        await reload("greeting = 'newer'\nbacklog = 5\ndeny = '127.0.0.1'\n", "Reloaded", 2)
        (line,) = await lines_with(service, "takes effect with a restart", 1)
        assert line == "warning: --backlog has changed, which takes effect with a restart"
        assert await service.stop() == 0
    assert any(line.startswith("warning: rejected clients: denied 1 so far") for line in service.lines)
    assert [line for line in service.lines if "Traceback" in line] == []


# -- what systemd hears ----------------------------------------------------------------------------------


async def test_systemd_hears_of_the_start_reloads_and_the_stop(tmp_path: Path) -> None:
    address = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(PATIENCE)

        async def heard() -> list[str]:
            message = await asyncio.to_thread(manager.recv, 4096)
            return message.decode().split("\n")

        async with serving(env={"NOTIFY_SOCKET": address}) as service:
            serves = ["READY=1", f"STATUS=serving on {service.address}"]
            assert await heard() == serves
            for _ in range(2):
                before = time.monotonic_ns() // 1000
                service.process.send_signal(signal.SIGHUP)
                first, second = await heard()
                assert first == "RELOADING=1"
                name, _, usec = second.partition("=")
                assert name == "MONOTONIC_USEC"
                assert before <= int(usec) <= time.monotonic_ns() // 1000
                assert await heard() == serves
            assert await service.stop() == 0
            assert await heard() == ["STOPPING=1"]
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(1)


async def test_the_watchdog_is_fed(tmp_path: Path) -> None:
    address = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(PATIENCE)
        async with serving(env={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000"}) as service:
            heard = [(await asyncio.to_thread(manager.recv, 4096)).decode() for _ in range(4)]
            assert heard[0].startswith("READY=1\n")
            assert heard[1:] == ["WATCHDOG=1"] * 3
            assert await service.stop() == 0


# -- Unix sockets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["660", "0777"])
async def test_the_mode_of_a_unix_socket(mode: str, tmp_path: Path) -> None:
    path = f"{tmp_path}/door"
    args = ("--listen", f"unix:{path}", "--unix-mode", mode)
    async with greeter_process("serve", *args) as service:
        assert stat.S_IMODE(os.lstat(path).st_mode) == int(mode, 8)
        assert (await greet(path=path)).data == HELLO
        assert await service.stop() == 0
    assert os.listdir(tmp_path) == []

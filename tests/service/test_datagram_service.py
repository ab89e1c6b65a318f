"""A service for datagrams as a process: what it counts, and what its options, signals and workers do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from tests.conftest import PATIENCE, Process, greeter_process, loop_factories, one_loop, run_greeter
from tests.service.test_kinds import is_idle
from tests.service.test_prometheus import fetch, samples
from tests.support.datagram_peers import QUESTION, BlockingLoop, ask, client, queued, receive, small_buffer
from tests.support.peers import until
from tests.support.service_peers import children, lines_with, started_by_init, stopped

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

# The loops under test are those of the services, not the one that watches them.
pytestmark = one_loop

HELLO = b"Thank you for connecting"
LISTEN = ("--listen", "udp:127.0.0.1:0")
both = pytest.mark.parametrize("workers", ["1", "2"])
every_loop = pytest.mark.parametrize("loop", list(loop_factories()))


@contextlib.asynccontextmanager
async def service(*args: str) -> AsyncIterator[tuple[Process, tuple[str, int]]]:
    """A service for datagrams, and its address."""
    async with greeter_process("serve", *LISTEN, "--no-access-log", *args) as process:
        yield process, ("127.0.0.1", process.port)


async def metrics_of(process: Process) -> dict[str, float]:
    address = (await process.line_with("Metrics on ")).rpartition(" ")[2]
    return samples((await fetch(address, "/metrics")).partition(b"\r\n\r\n")[2])


async def counted(process: Process, name: str, count: int) -> None:
    """Wait until the service has counted so many."""
    async with asyncio.timeout(PATIENCE):
        while (await metrics_of(process))[f"greeter_datagrams_{name}"] < count:
            pass


async def reload(process: Process) -> None:
    """Reload, and wait until no worker receives that has the old configuration."""
    before = set(children(process.pid))
    process.process.send_signal(signal.SIGHUP)
    await process.line_with("Reloaded")
    await until(lambda: not before & set(children(process.pid)), "all are replaced")


def serving(process: Process) -> list[int]:
    """The processes that serve: the workers, or the service itself."""
    return children(process.pid) or [process.pid]


async def stand_still(pids: list[int]) -> None:
    """Stop processes, and return when they are."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    await until(lambda: all(stopped(pid) for pid in pids), "they stand still")


def go_on(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


# -- what is counted -------------------------------------------------------------------------------------


@both
async def test_what_the_kernel_drops_is_a_metric_that_workers_share(workers: str) -> None:
    with small_buffer() as sock:
        args = ("--workers", workers, "--listen", f"fd:{sock.fileno()}", "--metrics", "127.0.0.1:0")
        async with greeter_process("serve", *args, pass_fds=(sock.fileno(),)) as process:
            await process.line_with("Metrics on ")
            await stand_still(pids := serving(process))
            with client(sock.getsockname()) as asking:
                for _ in range(200):
                    asking.send(QUESTION)
                go_on(pids)
                counts = {"received": 0.0, "dropped": 0.0}
                while sum(counts.values()) < 200:
                    found = await metrics_of(process)
                    counts = {name: found[f"greeter_datagrams_{name}_total"] for name in counts}
                assert sum(counts.values()) == 200
                assert queued(asking) == counts["received"] < 100
            assert await process.stop() == 0
        lines = [line for line in process.lines if "its receive buffer was full" in line]
        assert 1 <= len(lines) <= int(workers)
        assert f"dropped {counts['dropped']:.0f} datagrams to udp:127.0.0.1:" in lines[0]


# -- options ---------------------------------------------------------------------------------------------


async def test_the_check_of_the_configuration_knows_datagrams(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(b"x" * 65508)
    code, out, err = await run_greeter("serve", "--check-config", *LISTEN)
    assert (code, err) == (0, "")
    assert 'listen = ["udp:127.0.0.1:0"]' in out
    for options, why in (
        (("--proxy-protocol", "--proxy-from", "127.0.0.1"), "cannot be combined with a PROXY header"),
        (("--greeting-file", str(large)), "cannot send a greeting of 65508 bytes"),
        (("--listen", "udp:127.0.0.1:70000"), "has port 70000, which is not in 0-65535"),
        (("--listen", "udp:127.0.0.1"), "endpoint 'udp:127.0.0.1' has no port"),
    ):
        code, out, err = await run_greeter("serve", "--check-config", *LISTEN, *options)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert why in err


@both
async def test_datagrams_are_answered_during_the_stop_delay_though_it_is_not_ready(workers: str) -> None:
    args = ("--workers", workers, "--stop-delay", "600", "--metrics", "127.0.0.1:0")
    async with service(*args) as (process, address):
        health = (await process.line_with("Metrics on ")).rpartition(" ")[2]
        async with asyncio.timeout(PATIENCE):
            while not (found := await fetch(health, "/healthz")).endswith(b"\r\n\r\nok\n"):
                assert found.endswith(b"\r\n\r\nno worker responds\n"), "they had no processor in time"
        process.process.send_signal(signal.SIGTERM)
        await process.line_with("serving for another 600 s")
        head, _, body = (await fetch(health, "/healthz")).partition(b"\r\n\r\n")
        assert (head.split(b"\r\n")[0], body) == (b"HTTP/1.1 503 Service Unavailable", b"stopping\n")
        assert await ask(address) == HELLO
        process.process.kill()


@both
async def test_a_reload_changes_the_limits_of_datagrams(workers: str, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("deny = ['127.0.0.2']")
    args = ("--workers", workers, "--config", str(config), "--metrics", "127.0.0.1:0")
    async with service(*args) as (process, address):
        await process.line_with("Metrics on ")
        for number, (denied, allowed) in enumerate((("127.0.0.2", "127.0.0.3"), ("127.0.0.3", "127.0.0.2"))):
            if number:
                config.write_text(f"deny = ['{denied}']")
                await reload(process)
            with client(address, denied) as sock:
                sock.send(QUESTION)
                assert await ask(address, source=allowed) == HELLO
                await counted(process, "rejected_total{reason=denied}", number + 1)
                assert queued(sock) == 0
        assert await process.stop() == 0
    assert process.lines[-1].endswith(", 2 greeted of 4 datagrams")


@both
async def test_a_reload_warns_of_a_large_greeting(workers: str, tmp_path: Path) -> None:
    file = tmp_path / "greeting"
    file.write_bytes(b"x" * 512)
    async with service("--workers", workers, "--greeting-file", str(file)) as (process, address):
        file.write_bytes(b"x" * 513)
        await reload(process)
        assert await ask(address) == b"x" * 513
        assert await process.stop() == 0
    warning = "warning: the greeting has 513 bytes, and a datagram at most 512 (RFC 865): "
    assert [line.startswith(warning) for line in process.lines].count(True) == 1


async def test_a_worker_that_dies_costs_the_datagrams_that_it_had_received_only(tmp_path: Path) -> None:
    (tmp_path / "dying_app.py").write_text(
        "import asyncio, os\n"
        "async def greeting(peer):\n"
        "    if peer.host == '127.0.0.2':\n"
        "        await asyncio.sleep(3600)\n"
        "    return b'Hello'\n"
    )
    args = ("--workers", "2", "--app", "dying_app:greeting", "--greet-timeout", "600", "--no-access-log")
    async with (
        greeter_process(
            "serve", *LISTEN, *args, "--metrics", "127.0.0.1:0", env={"PYTHONPATH": str(tmp_path)}
        ) as process,
        contextlib.AsyncExitStack() as stack,
    ):
        address = ("127.0.0.1", process.port)
        await process.line_with("Metrics on ")
        waiting = stack.enter_context(client(address, "127.0.0.2"))
        for _ in range(10):
            waiting.send(QUESTION)
        await counted(process, "received_total", 10)
        await stand_still(pids := serving(process))
        sock = stack.enter_context(client(address))
        for _ in range(50):
            sock.send(QUESTION)
        os.kill(pids[0], signal.SIGKILL)
        go_on(pids[1:])
        for _ in range(50):
            assert await receive(sock) == b"Hello"
        await process.line_with("was killed by SIGKILL")
        os.kill(pids[1], signal.SIGKILL)
        await lines_with(process, "was killed by SIGKILL", 2)
        assert await ask(address) == b"Hello"  # by a worker in their place
        found = await metrics_of(process)
        assert found["greeter_datagrams_failed_total{class=aborted}"] == 10
        assert await process.stop() == 0
    assert process.lines[-1].endswith(", 51 greeted of 61 datagrams")


@pytest.mark.thorough
@every_loop
async def test_a_service_that_has_answered_bursts_makes_no_wakeups(loop: str) -> None:
    async with service("--loop", loop) as (process, address):
        load = BlockingLoop(address, HELLO)
        await asyncio.to_thread(load.run, 1_000)
        await asyncio.to_thread(load.read_the_rest)
        await is_idle(process)
        assert await process.stop() == 0


# -- under load ------------------------------------------------------------------------------------------


@pytest.mark.thorough
@every_loop
@both
async def test_100_000_datagrams_are_answered_across_reloads(loop: str, workers: str) -> None:
    async with service("--loop", loop, "--workers", workers) as (process, address):
        load = BlockingLoop(address, HELLO)
        reloads = 5
        running = asyncio.create_task(asyncio.to_thread(load.run, 100_000, lambda: reloads > 0))
        for number in range(1, 6):
            await until(lambda: load.asked > 10_000 * number or running.done(), "load")  # noqa: B023
            process.process.send_signal(signal.SIGHUP)
            await lines_with(process, "Reloaded", number)
            reloads -= 1
        await running
        await asyncio.to_thread(load.read_the_rest)
        assert await process.stop() == 0
    assert (load.lost, load.wrong) == (0, [])
    assert load.asked >= 100_000
    assert process.lines[-1].endswith(f", {load.asked} greeted of {load.asked} datagrams")


@pytest.mark.thorough
@every_loop
@both
async def test_what_was_sent_before_a_stop_signal_is_answered_under_load(loop: str, workers: str) -> None:
    for _ in range(5):
        async with service("--loop", loop, "--workers", workers) as (process, address):
            load = BlockingLoop(address, HELLO)
            await asyncio.to_thread(load.run, 2_000)
            with client(address) as sock:
                for _ in range(200):
                    sock.send(QUESTION)
                process.process.send_signal(signal.SIGTERM)
                assert await process.ended() == 0
                await asyncio.to_thread(load.read_the_rest)
                assert queued(sock) == 200
        assert (load.lost, load.wrong) == (0, [])
        total = load.asked + 200
        assert process.lines[-1].endswith(f", {total} greeted of {total} datagrams")


@pytest.mark.thorough
@both
async def test_restarts_on_a_socket_of_systemd_lose_no_datagram(workers: str) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        load, starts, greeted = BlockingLoop(sock.getsockname(), HELLO), 4, 0
        loops = list(loop_factories())
        running = asyncio.create_task(asyncio.to_thread(load.run, 1, lambda: starts > 0))
        while starts:
            args = ("--workers", workers, "--no-access-log", "--loop", loops[starts % len(loops)])
            async with started_by_init("serve", *args, sockets=(sock,)) as process:
                await until(lambda: load.answers > greeted + 1_000 or running.done(), "load")  # noqa: B023
                starts -= 1
                if not starts:
                    await running
                    await asyncio.to_thread(load.read_the_rest)
                assert await process.stop() == 0
            greeted += int(process.lines[-1].split()[-5])
        assert (load.lost, load.wrong, greeted) == (0, [], load.asked)

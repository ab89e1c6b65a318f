"""``greeter serve --workers 2``: a parent that keeps the sockets, seen from outside."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

import greeter
from greeter.options import ServeOptions
from greeter.parent import pack, unpack
from tests.conftest import PATIENCE, Process, greeter_process

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def metric(process: Process, name: str) -> int:
    line = await process.line_with("Metrics on ")
    host, _, port = line.rpartition("Metrics on ")[2].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: greeter\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    (value,) = [row.split()[1] for row in text.splitlines() if row.startswith(name + " ")]
    return int(float(value))


def workers(*args: str) -> tuple[str, ...]:
    return ("serve", "--workers", "2", "--listen", "127.0.0.1:0", "--no-access-log", *args)


async def test_options_travel_to_a_worker() -> None:
    options = ServeOptions(greeting="Hello $host", backlog=7)
    assert unpack(pack(options)) == options


@pytest.mark.parametrize("accept", ["instant", "stream"])
async def test_the_metrics_count_what_clients_counted(accept: str) -> None:
    pytest.importorskip("prometheus_client")
    args = workers("--metrics", "127.0.0.1:0", "--accept", accept)
    async with greeter_process(*args) as process:
        assert f"{accept}, 2 workers)" in process.lines[-1]
        assert len(children(process.pid)) == 2
        replies = await asyncio.gather(*(greeter.greet(port=process.port) for _ in range(200)))
        assert {reply.data for reply in replies} == {b"Thank you for connecting"}
        assert await metric(process, "greeter_greeted_total") == 200
        assert await process.stop() == 0
        assert process.lines[-1] == "Stopped: 200 greeted of 200 accepted, 0 failed"


async def test_a_reload_replaces_the_workers_and_a_bad_one_does_not(tmp_path: Path) -> None:
    file = tmp_path / "greeting"
    file.write_text("one")
    async with greeter_process(*workers("--greeting-file", str(file))) as process:
        before = children(process.pid)
        file.write_text("two")
        process.process.send_signal(signal.SIGHUP)
        await process.line_with("Reloaded")
        assert {(await greeter.greet(port=process.port)).data for _ in range(20)} == {b"two"}
        file.unlink()
        process.process.send_signal(signal.SIGHUP)
        assert "cannot read the greeting file" in await process.line_with("reload failed")
        assert (await greeter.greet(port=process.port)).data == b"two"
        assert not set(before) & set(children(process.pid))
        assert await process.stop(signal.SIGINT) == 0


async def test_a_killed_worker_is_replaced() -> None:
    async with greeter_process(*workers()) as process:
        first, second = children(process.pid)
        os.kill(first, signal.SIGKILL)
        await process.line_with("starting another")
        async with asyncio.timeout(PATIENCE):
            while len(set(children(process.pid)) - {first}) < 2:
                assert (await greeter.greet(port=process.port)).data == b"Thank you for connecting"
        assert second in children(process.pid)
        assert await process.stop() == 0


async def test_a_start_that_fails_leaves_nobody() -> None:
    async with greeter_process(*workers()) as process:
        async with greeter_process("serve", "--workers", "2", "--listen", process.address, ready="") as other:
            assert await other.ended() == 1
        assert other.lines == [f"greeter: cannot listen on {process.address}: address already in use"]

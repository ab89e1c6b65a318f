"""A small worker for test_supervisor.py: it greets on inherited sockets, or misbehaves as its task says."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

from greeter import Peer, serve
from greeter.service.channel import WorkerChannel
from greeter.service.snapshot import Counters


async def work(channel: WorkerChannel) -> int:
    task: dict[str, Any] = channel.task
    mode = task.get("mode", "serve")
    if mode == "fail" or not os.access(task.get("needs", "/"), os.F_OK) or not takes(task):
        channel.failed("no greeting today")
        return 3
    if mode == "never ready":
        await asyncio.Event().wait()

    async def never(_: Peer) -> str:
        await asyncio.Event().wait()
        return ""

    server = await serve(
        never if mode == "stall" else task.get("greeting", "hello"),
        listen=channel.endpoints,
        drain_timeout=task.get("drain_timeout", 5.0),
        access_log=False,
    )
    if channel.counters is not None:
        server.stats.move_to(channel.counters)
    leave = channel.open(lambda: Counters.of(server.stats).to_json())
    channel.ready()
    if mode == "crash":
        return 3
    if mode == "nonsense":
        channel._channel._sock.send(b"not JSON\n")
    why = await leave
    if mode == "stubborn":
        await asyncio.Event().wait()
    if "leaves" in task:
        os.write(os.open(task["leaves"], os.O_WRONLY | os.O_APPEND), f"{why}\n".encode())
    await server.drain()
    channel.close()
    return 0


def takes(task: dict[str, Any]) -> bool:
    """Remove the file that the task names, which only one worker can."""
    try:
        os.unlink(task.get("takes", ""))
    except FileNotFoundError:
        return "takes" not in task
    return True


def main() -> None:
    channel = WorkerChannel.from_environment()
    assert channel is not None
    while not os.access(channel.task.get("awaits", "/"), os.F_OK):
        time.sleep(0.005)
    sys.exit(asyncio.run(work(channel)))


if __name__ == "__main__":
    main()

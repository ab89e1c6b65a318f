"""A listening socket lives exactly as long as something accepts from it.

A client that connects is greeted, or it is refused at once: no connection waits in the queue of a socket that
no process serves, and the address is free for the next service.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from tests.conftest import PATIENCE, Process, greeter_process, one_loop
from tests.support.peers import Outcome, read_to_end, until
from tests.support.service_peers import HELLO, children, crowd, lines_with, on_every_stage, started_by_init

if TYPE_CHECKING:
    from pathlib import Path

# The loops under test are those of the services, not the one that watches them.
pytestmark = one_loop

names = iter(range(1_000_000))
STAY = ("--linger-timeout", "60", "--drain-timeout", "60")


def serving(*args: str, fds: tuple[int, ...] = ()) -> contextlib.AbstractAsyncContextManager[Process]:
    return greeter_process("serve", "--no-access-log", *args, pass_fds=fds)


def abstract() -> str:
    """An abstract name that no other service has."""
    return f"unix:@greeter-{os.getpid()}-{next(names)}"


async def addresses(service: Process) -> list[str]:
    """The three addresses of a service: TCP, a Unix socket with a file, and an abstract one."""
    lines = await lines_with(service, "Listening on ", 3)
    return [line.split()[2] for line in lines]


def everywhere(here: Path) -> tuple[str, ...]:
    """Options that listen on a socket of each kind."""
    return "--listen", "127.0.0.1:0", "--listen", f"unix:{here}/{next(names)}", "--listen", abstract()


async def connected(address: str) -> socket.socket:
    """A client of ``address``, as a service logs it. Raises ConnectionRefusedError if there is none."""
    unix = address.removeprefix("unix:")
    sock = socket.socket(socket.AF_INET if unix == address else socket.AF_UNIX)
    sock.setblocking(False)
    host, _, port = address.rpartition(":")
    where: object = (host, int(port)) if unix == address else unix.replace("@", "\0")
    try:
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().sock_connect(sock, where)  # type: ignore[arg-type]  # an address
    except BaseException:
        sock.close()
        raise
    return sock


async def refused(address: str, *, late: tuple[Outcome, ...] = ()) -> None:
    """Connect until the first refusal. Before that, clients are greeted in order, or end as in ``late``."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                with await connected(address) as sock:
                    assert await read_to_end(sock) in (Outcome(HELLO, reset=False), *late)
            except (ConnectionRefusedError, FileNotFoundError):
                return


async def lingering(address: str) -> socket.socket:
    """A client that has its greeting, and does not close."""
    sock = await connected(address)
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.get_running_loop().sock_recv(sock, 99) == HELLO
    return sock


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_stop_refuses_clients_while_others_linger(workers: str, tmp_path: Path) -> None:
    async def play(loop: str, path: str) -> None:
        args = (*everywhere(tmp_path), "--workers", workers, "--loop", loop, "--accept", path)
        async with serving(*args, *STAY) as service:
            places = await addresses(service)
            with contextlib.ExitStack() as inside:
                for address in places:
                    inside.enter_context(await lingering(address))
                service.process.send_signal(signal.SIGTERM)
                await asyncio.gather(*map(refused, places))
            assert await service.ended() == 0
        assert not [line for line in service.lines if line.startswith("error")]

    await on_every_stage(play)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_stop_refuses_clients_of_an_inherited_socket_that_nothing_else_holds(workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        fd = door.fileno()
        args = ("--listen", f"fd:{fd}", "--workers", workers, *STAY)
        async with serving(*args, fds=(fd,)) as service:
            door.close()
            with await lingering(service.address):
                service.process.send_signal(signal.SIGTERM)
                # Another service may have the socket too, so no handshake is rejected before it is closed.
                await refused(service.address, late=(Outcome(b"", reset=True),))
            assert await service.ended() == 0


async def test_workers_refuse_clients_when_their_parent_is_killed(tmp_path: Path) -> None:
    async def play(loop: str, path: str) -> None:
        options = ("--workers", "2", "--loop", loop, "--accept", path)
        async with serving(*options, *everywhere(tmp_path), *STAY) as service:
            pids = children(service.pid)
            places = await addresses(service)
            with contextlib.ExitStack() as inside:
                for address in places:
                    inside.enter_context(await lingering(address))
                service.process.kill()
                await asyncio.gather(*map(refused, places))
                again = [word for address in places for word in ("--listen", address)]
                async with serving(*again) as another:  # the addresses are free
                    assert await addresses(another) == places
                    assert await another.stop() == 0
            await until(lambda: not any(map(exists, pids)), "the workers have exited")

    await on_every_stage(play)


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_parent_killed_under_load_loses_no_client() -> None:
    async def play(loop: str, path: str) -> None:
        args = ("--listen", "127.0.0.1:0", "--workers", "2", "--loop", loop, "--accept", path)
        async with serving(*args) as service, crowd(service.port, clients=30) as clients:
            await clients.more(300)
            service.process.kill()
            await service.ended()
            clients.give_up()
        assert clients.lost == []
        assert clients.refused > 0

    await on_every_stage(play)


@pytest.mark.thorough
async def test_a_stop_of_all_processes_under_load_loses_no_client() -> None:
    async def play(loop: str, path: str) -> None:
        args = ("--listen", "127.0.0.1:0", "--workers", "2", "--loop", loop, "--accept", path)
        async with serving(*args) as service, crowd(service.port, clients=30) as clients:
            await clients.more(300)
            for pid in (*children(service.pid), service.pid, service.pid):  # and twice to the parent
                os.kill(pid, signal.SIGTERM)
            assert await service.ended() == 0
            clients.give_up()
        assert clients.lost == []
        heard = clients.greeted
        assert service.lines[-1] == f"Stopped: {heard} greeted of {heard} accepted, 0 failed"

    await on_every_stage(play)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_stop_at_capacity_greets_the_queue_of_an_abstract_socket(workers: str) -> None:
    async def play(loop: str, path: str) -> None:
        address = abstract()
        args = ("serve", "--no-access-log", "--workers", workers, "--loop", loop, "--accept", path)
        async with started_by_init(*args, "--listen", address, files=64) as service:
            with contextlib.ExitStack() as held:
                clients = [held.enter_context(await connected(address)) for _ in range(120)]
                await service.line_with("connections: accepting is paused")
                service.process.send_signal(signal.SIGTERM)
                await service.line_with("stopping: no new clients, finishing open connections")
                for client in clients:
                    assert await read_to_end(client) == Outcome(HELLO, reset=False)
                    client.close()
            assert await service.ended() == 0
        assert service.lines[-1] == "Stopped: 120 greeted of 120 accepted, 0 failed"

    await on_every_stage(play)

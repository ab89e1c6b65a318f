"""A reload never makes things worse: for open connections, access rules, clients that come meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from greeter import greet
from greeter.system.tls import client_context
from tests.conftest import PATIENCE, Process, greeter_process, one_loop
from tests.support.peers import Outcome, connect, read_to_end, until
from tests.support.service_peers import HELLO, children, on_every_stage, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = one_loop

IP_BIND_ADDRESS_NO_PORT = 24  # ip(7): a port is chosen by connect(2), and may be in use with other peers
# Answers when a file is there.
SLOW = """
import asyncio, os
async def slow(peer):
    while not os.path.exists(os.environ["GO"]):
        await asyncio.sleep(0.01)
    return "at last"
"""
# Denies memfd_create(2), as SystemCallFilter=~memfd_create of systemd does, and becomes greeter.
WITHOUT_MEMFD = """
import ctypes, os, struct, sys
number = {"x86_64": 319, "aarch64": 279}[os.uname().machine]
rules = (0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
head = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(rules), ctypes.addressof(program)))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, head, 0, 0) == 0
os.execv(sys.executable, [sys.executable, "-m", "greeter", *sys.argv[1:]])
"""


def serving(
    *args: str, fds: tuple[int, ...] = (), env: dict[str, str] | None = None
) -> contextlib.AbstractAsyncContextManager[Process]:
    args = ("serve", "--listen", "127.0.0.1:0", "--no-access-log", *args)
    return greeter_process(*args, pass_fds=fds, env=env)


@contextlib.contextmanager
def pipe(data: bytes) -> Iterator[tuple[str, int]]:
    """A path as of ``<(command)`` in a shell, and its descriptor, of data that can be read only once."""
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    try:
        yield f"/dev/fd/{reading}", reading
    finally:
        os.close(reading)


async def reload(service: Process, line: str = "Reloaded") -> None:
    before = set(children(service.pid))
    service.process.send_signal(signal.SIGHUP)
    await service.line_with(line)
    if before and line == "Reloaded":
        await until(lambda: not before & set(children(service.pid)), "all are replaced")


async def outcomes(port: int, *sources: str) -> list[Outcome]:
    """What clients with these addresses hear."""
    found = []
    for source in sources:
        sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((source, 0))
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        found.append(await read_to_end(sock))
    return found


# -- open connections ------------------------------------------------------------------------------------


@pytest.mark.thorough
async def test_a_replaced_worker_has_the_time_of_its_connections(tmp_path: Path) -> None:
    """Not that of a stop: only a stop has a drain deadline."""
    (tmp_path / "app.py").write_text(SLOW)

    async def play(loop: str, path: str) -> None:
        go = tmp_path / f"{loop}-{path}"
        env = {"PYTHONPATH": str(tmp_path), "GO": str(go)}
        args = ("--workers", "2", "--app", "app:slow", "--drain-timeout", "0.1", "--greet-timeout", "60")
        async with serving(*args, "--loop", loop, "--accept", path, env=env) as service:
            clients = [await connect(service.port) for _ in range(6)]
            service.process.send_signal(signal.SIGHUP)
            await service.line_with("Reloaded")
            await asyncio.sleep(0.5)  # five times as long as the drain deadline
            go.touch()
            for client in clients:
                assert await read_to_end(client) == Outcome(b"at last", reset=False)
            assert await service.stop() == 0
        assert service.lines[-1] == "Stopped: 6 greeted of 6 accepted, 0 failed"

    await on_every_stage(play)


async def test_a_stop_gives_replaced_workers_the_time_of_a_stop(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(SLOW)
    env = {"PYTHONPATH": str(tmp_path), "GO": f"{tmp_path}/never"}
    args = ("--workers", "2", "--app", "app:slow", "--drain-timeout", "0.2", "--greet-timeout", "600")
    async with serving(*args, env=env) as service:
        with await connect(service.port):
            service.process.send_signal(signal.SIGHUP)
            await service.line_with("Reloaded")
            assert await service.stop() == 0
    assert "warning: aborted 1 connection at the drain deadline" in service.lines
    assert not [line for line in service.lines if "killed" in line]


# -- what can be read only once --------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_configuration_from_a_pipe_keeps_its_rules(workers: str) -> None:
    rules = b'greeting = "secret"\nallow = ["127.0.0.1"]\n'
    wanted = [Outcome(b"secret", reset=False), Outcome(b"", reset=False)]
    with pipe(rules) as (path, fd):
        async with serving("--workers", workers, "--config", path, fds=(fd,)) as service:
            assert await outcomes(service.port, "127.0.0.1", "127.0.0.2") == wanted
            await reload(service)
            assert await outcomes(service.port, "127.0.0.1", "127.0.0.2") == wanted
            assert await service.stop() == 0
    assert f"warning: {path} can be read only once: it counts as it was at the start" in service.lines


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_greeting_and_a_key_from_pipes_are_kept(workers: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(f"{tmp_path}/ca.pem")
    issued = authority.issue_cert("localhost")
    context = client_context(f"{tmp_path}/ca.pem")
    with contextlib.ExitStack() as stack:
        pipes = [
            stack.enter_context(pipe(data))
            for data in (b"from a pipe", issued.cert_chain_pems[0].bytes(), issued.private_key_pem.bytes())
        ]
        (greeting, _), (cert, _), (key, _) = pipes
        args = ("--greeting-file", greeting, "--tls-cert", cert, "--tls-key", key, "--workers", workers)
        async with serving(*args, fds=tuple(fd for _, fd in pipes)) as service:

            async def heard() -> bytes:
                options: dict[str, Any] = {"timeout": PATIENCE, "connect_timeout": PATIENCE, "ssl": context}
                return (await greet("127.0.0.1", service.port, server_hostname="localhost", **options)).data

            assert await heard() == b"from a pipe"
            await reload(service)
            assert await heard() == b"from a pipe"
            for pid in children(service.pid):  # nor does a replacement read it again
                os.kill(pid, signal.SIGKILL)
            assert await heard() == b"from a pipe"
            assert await service.stop() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_file_that_is_empty_at_a_reload_changes_nothing(workers: str, tmp_path: Path) -> None:
    """As it is for a moment while an editor or ``>`` of a shell writes it."""
    file = tmp_path / "greeter.toml"
    file.write_text("deny = '127.0.0.2'\n")
    wanted = [Outcome(HELLO, reset=False), Outcome(b"", reset=False)]
    async with serving("--config", str(file), "--workers", workers) as service:
        file.write_text("")
        await reload(service, "reload failed, the old configuration stays")
        assert await outcomes(service.port, "127.0.0.1", "127.0.0.2") == wanted
        assert await service.stop() == 0


# -- the work of a reload --------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_clients_are_greeted_while_a_reload_reads(workers: str, tmp_path: Path) -> None:
    """From a file that comes slowly, as that of a file system that hangs: a FIFO without a writer."""
    file = tmp_path / "greeter.toml"
    file.write_text("greeting = 'one'\n")
    async with serving("--config", str(file), "--workers", workers) as service:
        file.unlink()
        os.mkfifo(file)
        before = set(children(service.pid))
        service.process.send_signal(signal.SIGHUP)
        for _ in range(20):
            assert (await greet(port=service.port, timeout=PATIENCE, connect_timeout=PATIENCE)).data == b"one"
        await asyncio.to_thread(file.write_text, "greeting = 'two'\n")  # waits for the reader
        await service.line_with("Reloaded")
        await until(lambda: not before & set(children(service.pid)), "all are replaced")
        assert (await greet(port=service.port, timeout=PATIENCE, connect_timeout=PATIENCE)).data == b"two"
        assert await service.stop() == 0


async def test_a_stop_does_not_wait_for_a_reload_that_reads(tmp_path: Path) -> None:
    file = tmp_path / "greeter.toml"
    file.write_text("greeting = 'one'\n")
    async with serving("--config", str(file)) as service:
        file.unlink()
        os.mkfifo(file)
        service.process.send_signal(signal.SIGHUP)
        assert (await greet(port=service.port, timeout=PATIENCE, connect_timeout=PATIENCE)).data == b"one"
        assert await service.stop() == 0
    assert service.lines[-1] == "Stopped: 1 greeted of 1 accepted, 0 failed"


# -- what workers get ------------------------------------------------------------------------------------


async def test_workers_share_one_copy_of_a_large_greeting(tmp_path: Path) -> None:
    size = 64 << 20
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", size)
    args = ("--workers", "2", "--greeting-file", f"{tmp_path}/large", "--greet-timeout", "600")
    async with serving(*args) as service:
        loop = asyncio.get_running_loop()
        with await connect(service.port) as client:
            left, buffer = size, bytearray(1 << 20)
            async with asyncio.timeout(PATIENCE):
                while count := await loop.sock_recv_into(client, buffer):
                    left -= count
        assert left == 0
        assert await service.stop() == 0


@pytest.mark.parametrize("kind", ["a file", "a pipe"])
async def test_workers_start_where_memfd_is_denied(kind: str, tmp_path: Path) -> None:
    if os.uname().machine not in ("x86_64", "aarch64"):
        pytest.skip("the number of the system call is not known here")
    (tmp_path / "greeting").write_text("from a file")
    with pipe(b"from a pipe") as (path, fd):
        path = path if kind == "a pipe" else f"{tmp_path}/greeting"
        args = ("serve", "--listen", "127.0.0.1:0", "--workers", "2", "--greeting-file", path)
        async with running(sys.executable, "-c", WITHOUT_MEMFD, *args, fds=(fd,)) as service:
            for _ in range(2):
                assert (
                    await greet(port=service.port, timeout=PATIENCE, connect_timeout=PATIENCE)
                ).data == f"from {kind}".encode()
                await reload(service)
            assert await service.stop() == 0

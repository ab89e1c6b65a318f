"""Both directions against programs that know nothing of greeter: the primer's kind, ncat and socat."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from greeter import greet
from tests.conftest import PATIENCE, greeter_process, loop_factories, one_loop, run_greeter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HELLO = "Thank you for connecting"

# What is under test runs in processes of its own.
pytestmark = one_loop

# A beginner's client: connect, receive once, print, close.
PRIMER_CLIENT = """
import socket, sys

s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
s.connect(("127.0.0.1", int(sys.argv[1])))
print(s.recv(1024).decode("ascii"))
print(s.getsockname()[1], file=sys.stderr)
s.close()
"""

# The same one, with something to say before it listens: an early close would reset it.
TALKATIVE_CLIENT = """
import socket, sys

s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
s.connect(("127.0.0.1", int(sys.argv[1])))
s.sendall(b"x" * int(sys.argv[2]))
parts = []
while part := s.recv(7):
    parts.append(part)
print(b"".join(parts).decode("ascii"))
s.close()
"""

# A beginner's server: one client at a time, send, close, for ever.
PRIMER_SERVER = """
import socket

s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
s.bind(("127.0.0.1", 0))
s.listen(1)
print(s.getsockname()[1], flush=True)
while True:
    client, address = s.accept()
    print("Got a connection from", address, flush=True)
    client.send("Thank you for connecting".encode("ascii"))
    client.close()
"""


async def output_of(*command: str, said: bytes | None = None) -> tuple[int, str, str]:
    """Run a program to its end: exit code, stdout, stderr. ``said`` is its whole stdin."""
    stdin = asyncio.subprocess.DEVNULL if said is None else asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        *command, stdin=stdin, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(PATIENCE):
            out, err = await child.communicate(said)
    except BaseException:
        child.kill()
        await child.communicate()
        raise
    assert child.returncode is not None
    return child.returncode, out.decode(), err.decode()


@contextlib.asynccontextmanager
async def program(*command: str, stderr: bool = False) -> AsyncIterator[asyncio.StreamReader]:
    """A server that runs until it is killed; its stdout, or its stderr."""
    pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    child = await asyncio.create_subprocess_exec(
        *command, stdin=null, stdout=null if stderr else pipe, stderr=pipe if stderr else null
    )
    reader = child.stderr if stderr else child.stdout
    assert reader is not None
    try:
        yield reader
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


# -- their clients, our server ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["streams", "direct"])
@pytest.mark.parametrize("loop", list(loop_factories()))
async def test_the_primers_two_terminals(loop: str, path: str) -> None:
    async with greeter_process(
        "serve", "--listen", "127.0.0.1:0", "--loop", loop, "--accept", path
    ) as server:
        code, out, port = await output_of(sys.executable, "-c", PRIMER_CLIENT, str(server.port))
        assert (code, out) == (0, HELLO + "\n")
        line = await server.line_with("Got a connection")
        assert line == f"Got a connection from ('127.0.0.1', {port.strip()})"
        assert await server.stop() == 0


@pytest.mark.parametrize("size", [18, 200_000])
async def test_a_client_that_speaks_first(size: int) -> None:
    async with greeter_process("serve", "--listen", "127.0.0.1:0") as server:
        command = [sys.executable, "-c", TALKATIVE_CLIENT, str(server.port), str(size)]
        assert await output_of(*command) == (0, HELLO + "\n", "")
        assert await server.stop() == 0


async def test_ncat_as_the_client() -> None:
    ncat = tool("ncat")
    async with greeter_process("serve", "--listen", "127.0.0.1:0") as server:
        for args, said in (([], b""), ([], b"x" * 5000), (["--recv-only"], None)):
            command = [ncat, *args, "127.0.0.1", str(server.port)]
            assert await output_of(*command, said=said) == (0, HELLO, "")
        assert await server.stop() == 0


async def test_socat_as_the_client(tmp_path: Path) -> None:
    socat = tool("socat")
    async with greeter_process(
        "serve", "--listen", "127.0.0.1:0", "--listen", f"unix:{tmp_path}/x"
    ) as server:
        for address in (f"TCP4:127.0.0.1:{server.port}", f"UNIX-CONNECT:{tmp_path}/x"):
            for said in (b"", b"x" * 5000):
                assert await output_of(socat, "-t", "5", "-", address, said=said) == (0, HELLO, "")
        assert await server.stop() == 0


# -- our client, their servers ---------------------------------------------------------------------------


async def test_the_primers_server() -> None:
    async with program(sys.executable, "-c", PRIMER_SERVER) as out:
        port = int(await out.readline())
        assert await run_greeter("greet", f"127.0.0.1:{port}") == (0, HELLO + "\n", "")
        assert (await out.readline()).startswith(b"Got a connection from ('127.0.0.1', ")
        for _ in range(10):  # one after the other: its queue has room for one
            assert str(await greet(port=port)) == HELLO


@pytest.fixture
def greeting(tmp_path: Path) -> Path:
    """A file with the greeting in it."""
    path = tmp_path / "greeting"
    path.write_text(HELLO)
    return path


async def test_ncat_as_the_server(tmp_path: Path, greeting: Path) -> None:
    path = f"{tmp_path}/x"
    command = [tool("ncat"), "--listen", "--keep-open", "--unixsock", path, "--sh-exec", f"cat {greeting}"]
    async with program(*command):
        assert await run_greeter("greet", f"unix:{path}", "--wait", str(PATIENCE)) == (0, HELLO + "\n", "")
        assert str(await greet(path=path)) == HELLO


async def test_socat_as_the_server(greeting: Path) -> None:
    command = [tool("socat"), "-d", "-d", "TCP4-LISTEN:0,bind=127.0.0.1,fork", f"SYSTEM:cat {greeting}"]
    async with program(*command, stderr=True) as log:
        line = b""
        async with asyncio.timeout(PATIENCE):
            while b" listening on AF=2 127.0.0.1:" not in line:
                line = await log.readline()
                assert line, "socat has ended"
        port = int(line.rpartition(b":")[2])
        assert await run_greeter("greet", f"127.0.0.1:{port}") == (0, HELLO + "\n", "")
        assert str(await greet(port=port)) == HELLO

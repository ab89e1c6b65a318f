"""Every example runs, with warnings as errors, and says what it promises."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import PATIENCE, ROOT, greeter_process, one_loop, run_greeter
from tests.support.loadtest_peers import refused_endpoint
from tests.support.peers import Outcome, connect, read_to_end

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = one_loop


# What asyncio's debug mode says of a turn of the loop that the machine was too busy for.
SLOW = re.compile(r"^Executing .* took \d+\.\d+ seconds\n", re.MULTILINE)


async def start_example(*args: str, path: Path = ROOT) -> asyncio.subprocess.Process:
    """Start it in Python's development mode, with ``path`` to import from."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-X",
        "dev",
        "-W",
        "error",
        *args,
        cwd=ROOT / "examples",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{path}:{ROOT}"},
    )


async def end_of(child: asyncio.subprocess.Process) -> tuple[int, str, str]:
    """Wait for the end of an example: exit code, stdout, stderr."""
    async with asyncio.timeout(PATIENCE):
        out, err = await child.communicate()
    assert child.returncode is not None
    return child.returncode, out.decode(), SLOW.sub("", err.decode())


async def run_example(*args: str, path: Path = ROOT) -> tuple[int, str, str]:
    """Start an example and wait for its end."""
    return await end_of(await start_example(*args, path=path))


@pytest.mark.parametrize(
    ("example", "promise"),
    [
        ("server.py", "greeted 2, failed 0"),
        ("dynamic_greeting.py", "Hello 127.0.0.1, this is visit 3"),
        ("many_clients.py", "1000 clients greeted"),
        ("readiness.py", "the service says 'ready'"),
        ("smtp_banner.py", "220 mail.example"),
    ],
)
async def test_example(example: str, promise: str) -> None:
    if example == "smtp_banner.py":
        pytest.importorskip("aiosmtpd")
    code, out, err = await run_example(example)
    assert (code, err) == (0, "")
    assert promise in out


async def test_client() -> None:
    async with greeter_process("serve", "--listen", "127.0.0.1:0") as server:
        code, out, err = await run_example("client.py", server.address)
    assert (code, err) == (0, "")
    assert out.startswith("Thank you for connecting (24 bytes in ")
    refused = refused_endpoint()
    code, out, err = await run_example("client.py", refused)
    assert (code, err) == (1, "")
    assert out == f"cannot connect to {refused}: connection refused\n"
    code, out, err = await run_example("client.py", "bogus")
    assert (code, err) == (1, "")
    assert out == "endpoint 'bogus' has no port, as in localhost:9999\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_own_server_greets_a_client_that_connected_before_the_stop(number: signal.Signals) -> None:
    child = await start_example("-u", "own_server.py", "0")
    assert child.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE):
            port = int((await child.stdout.readline()).removeprefix(b"listening on port "))
            client = await connect(port)
            assert await child.stdout.readline() == b"127.0.0.1 connected\n"
            child.send_signal(number)
            assert await read_to_end(client) == Outcome(b"Hello 127.0.0.1", reset=False)
            assert await end_of(child) == (0, "stopping\nstopped\n", "")
    finally:
        if child.returncode is None:
            child.kill()


async def test_smtp_conversation() -> None:
    smtp = pytest.importorskip("aiosmtpd.smtp")
    server = await asyncio.get_running_loop().create_server(
        lambda: smtp.SMTP(None, hostname="mail.example"), "127.0.0.1", 0
    )
    async with server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        code, out, err = await run_example("smtp_conversation.py", address)
    assert (code, err) == (0, "")
    said = out.splitlines()
    assert said[0].startswith("S: 220 mail.example ")
    assert said[1:3] == ["C: EHLO client.example", "S: 250-mail.example"]
    assert said[-3].startswith("S: 250 ")
    assert said[-2:] == ["C: QUIT", "S: 221 Bye"]
    refused = refused_endpoint()
    code, out, err = await run_example("smtp_conversation.py", refused)
    assert (code, out, err) == (1, f"cannot connect to {refused}: connection refused\n", "")


async def test_without_the_package_of_an_example(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['aiosmtpd'] = None")
    code, out, err = await run_example("smtp_banner.py", path=tmp_path)
    assert (code, out, err) == (1, "", "this example needs aiosmtpd: pip install aiosmtpd\n")


async def test_dynamic_greeting_as_an_app() -> None:
    env = {"PYTHONPATH": f"{ROOT}:{ROOT / 'examples'}"}
    args = ("serve", "--app", "dynamic_greeting:greeting", "--listen", "127.0.0.1:0")
    async with greeter_process(*args, env=env) as server:
        assert server.lines[-1].endswith(", direct)")
        assert await run_greeter("greet", server.address) == (0, "Hello 127.0.0.1, this is visit 1\n", "")

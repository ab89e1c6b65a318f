"""Network namespaces on a bridge, as hosts of one local network. Only root can make them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import PATIENCE, ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


def _ip(*args: str) -> str:
    command = ["ip", *args]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout


class Host:
    """A namespace with a name and an address."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address

    def add_address(self, address: str) -> None:
        """Give the host one more address, with its prefix length."""
        _ip("-n", self.name, "address", "add", address, "dev", "eth0", *["nodad"] * (":" in address))

    def link_local(self) -> str:
        """The link-local IPv6 address that the kernel has given to the host."""
        shown = _ip("-n", self.name, "-6", "-o", "address", "show", "dev", "eth0", "scope", "link")
        return shown.split("inet6 ")[1].split("/")[0]

    async def run(self, *args: str) -> tuple[int, str, str]:
        """Run Python with ``args`` on this host: exit code, stdout, stderr."""
        process = await self._start(*args)
        try:
            async with asyncio.timeout(PATIENCE):
                out, err = await process.communicate()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        return process.returncode or 0, out.decode(), err.decode()

    @contextlib.asynccontextmanager
    async def running(self, *args: str, ready: str) -> AsyncIterator[None]:
        """Python with ``args`` on this host, entered when its stderr has a line with ``ready``."""
        process = await self._start(*args)
        assert process.stderr is not None
        try:
            async with asyncio.timeout(PATIENCE):
                while ready not in (line := (await process.stderr.readline()).decode()):
                    assert line, "it has ended"
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()

    async def _start(self, *args: str) -> asyncio.subprocess.Process:
        # "ip netns exec" becomes the command, so a signal reaches it.
        command = ("ip", "netns", "exec", self.name, sys.executable, *args)
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=pipe, stderr=pipe)


@contextlib.contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """So many hosts on one bridge, 10.77.0.1 and on. The second one has no broadcast address."""
    if shutil.which("ip") is None:
        pytest.skip("needs ip(8)")
    prefix = f"greeter-{os.getpid()}"
    switch, made = f"{prefix}-switch", []
    try:
        try:
            _ip("netns", "add", switch)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"needs the permission to make network namespaces: {error.stderr.strip()}")
        made.append(switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        found = []
        for number in range(1, count + 1):
            host = Host(f"{prefix}-{number}", f"10.77.0.{number}")
            port = f"port{number}"
            _ip("netns", "add", host.name)
            made.append(host.name)
            _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            broadcast = () if number == 2 else ("broadcast", "+")
            _ip("-n", host.name, "address", "add", f"{host.address}/24", *broadcast, "dev", "eth0")
            for link in ("lo", "eth0"):
                _ip("-n", host.name, "link", "set", link, "up")
            found.append(host)
        yield found
    finally:
        for name in made:
            _ip("netns", "delete", name)

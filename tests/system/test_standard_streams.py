"""Descriptors 0 to 2 that are closed at the start are occupied, in every command."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys

import pytest

from tests.conftest import PATIENCE, ROOT, greeter_process, one_loop
from tests.support.service_peers import running

CLOSED = [fds for count in (1, 2, 3) for fds in itertools.combinations(range(3), count)]
# Closes descriptors, and becomes greeter.
START = """
import os, sys
for fd in map(int, sys.argv[1].split(",")):
    os.close(fd)
os.execv(sys.executable, [sys.executable, "-m", "greeter", *sys.argv[2:]])
"""
OCCUPY = """
import os, sys
for fd in map(int, sys.argv[1].split(",")):
    os.close(fd)
from greeter.system.standard_streams import occupy_standard_streams
occupy_standard_streams()
found = [os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)]
wanted = [found[fd] == "/dev/null" and os.get_inheritable(fd) for fd in map(int, sys.argv[1].split(","))]
sys.exit(not all(wanted))
"""


def text(fds: tuple[int, ...]) -> str:
    return ",".join(map(str, fds))


@pytest.mark.parametrize("fds", CLOSED, ids=text)
def test_closed_descriptors_are_occupied(fds: tuple[int, ...]) -> None:
    command = [sys.executable, "-c", OCCUPY, text(fds)]
    assert subprocess.run(command, cwd=ROOT, timeout=PATIENCE).returncode == 0


@pytest.mark.parametrize("fds", [(0,), (0, 1, 2)], ids=text)
@one_loop
async def test_a_load_test_ends_with_its_own_exit_code(fds: tuple[int, ...]) -> None:
    """On uvloop, closing the loop would abort: libuv takes descriptors 0 to 2 for a mistake."""
    async with greeter_process("serve", "--listen", "127.0.0.1:0", "--no-access-log") as service:
        command = [sys.executable, "-c", START, text(fds), "load", service.address, "-n", "5", "--quiet"]
        done = await asyncio.to_thread(
            subprocess.run, command, cwd=ROOT, capture_output=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0


@pytest.mark.parametrize("fds", [(0,), (0, 1)], ids=text)
@one_loop
async def test_a_service_stops_with_exit_code_0(fds: tuple[int, ...]) -> None:
    args = ("serve", "--listen", "127.0.0.1:0")
    async with running(sys.executable, "-c", START, text(fds), *args) as service:
        assert await service.stop() == 0

"""``greeter load`` on real terminals: those of tmux, in several widths."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import PATIENCE
from tests.support.loadtest_peers import GREETING, greet, serving

if TYPE_CHECKING:
    from collections.abc import Callable

TMUX = shutil.which("tmux")
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.one_interpreter,
    pytest.mark.skipif(TMUX is None, reason="needs tmux"),
]

ROOT = str(Path(__file__).resolve().parents[2])
HEIGHT = 60


class Pane:
    """The only pane of a tmux server of its own."""

    def __init__(self, socket: Path) -> None:
        self._socket = str(socket)

    async def tmux(self, *words: str) -> str:
        """Run a tmux command, and return its output."""
        assert TMUX is not None
        environment = {
            name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")
        }
        process = await asyncio.create_subprocess_exec(
            TMUX,
            *("-S", self._socket, "-f", "/dev/null", *words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env={**environment, "LC_ALL": "C.UTF-8", "PYTHONPATH": ROOT},
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, words
        return output.decode()

    async def run(self, command: str, width: int) -> None:
        """Start a command in a pane of ``width`` columns, which stays when the command has ended."""
        shell = f"{command}; echo ended; exec sleep {PATIENCE:.0f}"
        await self.tmux("new-session", "-d", "-x", str(width), "-y", str(HEIGHT), shell)

    async def lines(self, *options: str) -> list[str]:
        """Return what the pane shows, without empty lines at its end."""
        return (await self.tmux("capture-pane", "-p", *options)).rstrip().split("\n")

    async def until(self, wanted: Callable[[list[str]], object]) -> list[str]:
        """Wait until the lines are as ``wanted``, and return them."""
        async with asyncio.timeout(PATIENCE):
            while not wanted(lines := await self.lines()):  # noqa: ASYNC110  # a pane has no event to wait for
                await asyncio.sleep(0.02)
        return lines


def shows(text: str) -> Callable[[list[str]], bool]:
    return lambda lines: any(text in line for line in lines)


def load(target: str, *options: str) -> str:
    return shlex.join([sys.executable, "-m", "greeter", "load", target, "--rate", "50", *options])


@pytest.mark.parametrize("width", [50, 80, 120])
def test_a_run_fits_the_terminal(tmp_path: Path, width: int) -> None:
    async def check() -> None:
        pane, seen = Pane(tmp_path / "tmux"), asyncio.Event()

        async def greet_later(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await seen.wait()  # the run goes on until its panel was seen
            writer.write(GREETING)

        options = ("--duration", "1s", "--timeout", f"{PATIENCE:.0f}s", "--threshold", "response:p99<1us")
        async with serving(greet_later) as target:
            await pane.run(load(target, *options), width)
            try:
                panel = await pane.until(shows("greeted of"))
                seen.set()
                assert [line.endswith(" of 1 s") for line in panel] == [True, *[False] * (len(panel) - 1)]
                assert panel[-2].startswith("p99 ")
                end = await pane.until(shows("ended"))
                colours = "\n".join(await pane.lines("-e"))
                joined = [line.rstrip() for line in await pane.lines("-J")]
            finally:
                await pane.tmux("kill-server")
        assert end[0].startswith("Load test of "), "nothing of the panel is left"
        heads = next(line for line in end if line.endswith(" max")).split()
        assert ("mean" in heads, "p99.9" in heads, "p99.99" in heads) == {
            50: (False, False, False),
            80: (False, True, False),
            120: (True, True, True),
        }[width]
        assert sum("MISSED" in line for line in end) == 1
        assert "\x1b[1m\x1b[31mMISSED" in colours
        assert joined == end, "the terminal wrapped no line"

    asyncio.run(check())


def bar(lines: list[str]) -> str:
    """Return the progress bar; "" if there is none, or more than one."""
    found = [line for line in lines if set(line) & set("━╌")]
    return found[0] if len(found) == 1 else ""


def test_the_panel_follows_a_pane_that_changes(tmp_path: Path) -> None:
    """No part of a frame that the terminal wrapped is left, and no line above it is erased."""

    async def check() -> None:
        pane = Pane(tmp_path / "tmux")
        async with serving(greet) as target:
            await pane.run(f"seq 101 120; {load(target, '--duration', '10m')}", 100)
            try:
                for width in (100, 60, 40, 120):
                    await pane.tmux("resize-window", "-x", str(width))
                    panel = await pane.until(
                        lambda lines: len(bar(lines)) == width - 1 and shows("greeted of")(lines)  # noqa: B023
                    )
                    assert sum("greeted of" in line for line in panel) == 1
                    assert panel[panel.index(bar(panel)) - 1] == "120"
            finally:
                await pane.tmux("kill-server")

    asyncio.run(check())

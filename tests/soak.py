"""Serve for minutes under load, reloads and kills, and check that only what was killed is lost.

``python -m tests.soak`` takes 10 minutes and exits with 1 if something is wrong. Each event loop and accept
path has a service of 2 workers, and clients that read, speak first, dawdle or reset. A SIGHUP comes every 5
seconds and a worker is killed every 20. What happens when is drawn from ``--seed``, which is printed.

Checked of each service:

- A client that behaves is greeted whole. Those that were lost are no more than the connections that killed
  workers had. Each is counted as aborted, or was counted as greeted and lingered with input it had not read.
- accepted = greeted + failed + rejected when no connection is open.
- The memory and the descriptors of the parent are level.
- SIGTERM ends it with 0.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import os
import random
import signal
import socket
import struct
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from tests.conftest import PATIENCE, Process, greeter_process
from tests.support.peers import read_to_end, until
from tests.support.proc import connections, resident_bytes
from tests.support.service_peers import STAGES, children, descriptors, metric, stopped

CLIENTS = 12
RELOAD_SECONDS, KILL_SECONDS = 5.0, 20.0
# What the parent may grow by between the first and the last fifth of a run, in bytes.
GROWTH = 4 * 1024 * 1024
GREETING = b"hello"
APP = "import asyncio\n\n\nasync def hello(peer):\n    await asyncio.sleep(0.005)\n    return 'hello'\n"
RESET = struct.pack("ii", 1, 0)  # struct linger: close() resets
BEHAVIOURS = {"read": 10, "speak first": 6, "dawdle": 2, "reset": 2}  # and how often


class Soak:
    """One service, and what its clients heard.

    Args:
        process: The service.
        seconds: How long it runs.
        seed: What everything is drawn from.
    """

    def __init__(self, process: Process, seconds: float, seed: str) -> None:
        self.process = process
        self.greeted = 0
        self.lost: list[str] = []
        self.killed = 0  # the connections that workers had when they were killed
        self._end = time.monotonic() + seconds
        self._seconds = seconds
        self._seed = seed
        self._memory: list[int] = []
        self._descriptors = 0  # at the start

    async def run(self) -> list[str]:
        """Run it to its end. Returns what is wrong."""
        await metric(self.process, "greeter_open_connections")  # at its first client, uvloop opens /dev/null
        self._descriptors = descriptors(self.process.pid)
        log = collections.deque(self.process.lines, maxlen=100)
        reading = asyncio.create_task(self._read_log(log))
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(self._keep_coming(random.Random(f"{self._seed} {number}")))
            group.create_task(self._reload())
            group.create_task(self._kill())
            group.create_task(self._watch())
        problems = await self._totals() + await self._growth()
        self.process.process.terminate()
        async with asyncio.timeout(PATIENCE):
            code = await self.process.process.wait()
            await reading
        if code:
            problems.append(f"it ended with {code}: {list(log)}")
        return problems

    async def _read_log(self, log: collections.deque[str]) -> None:
        assert self.process.process.stderr is not None
        while line := await self.process.process.stderr.readline():
            log.append(line.decode().removesuffix("\n"))

    async def _every(self, seconds: float) -> bool:
        """Wait so long, less in a short run. Returns False when the run is over."""
        await asyncio.sleep(min(seconds, self._seconds / 5))
        return time.monotonic() < self._end

    async def _reload(self) -> None:
        while await self._every(RELOAD_SECONDS):
            self.process.process.send_signal(signal.SIGHUP)

    async def _kill(self) -> None:
        chance = random.Random(f"{self._seed} kills")
        while await self._every(KILL_SECONDS):
            with contextlib.suppress(
                IndexError, FileNotFoundError, ProcessLookupError
            ):  # just being replaced
                pid = chance.choice(children(self.process.pid))
                os.kill(pid, signal.SIGSTOP)
                await until(partial(stopped, pid), "the worker stands still")
                self.killed += connections(pid)
                os.kill(pid, signal.SIGKILL)

    async def _watch(self) -> None:
        while await self._every(1.0):
            self._memory.append(resident_bytes(self.process.pid))

    async def _keep_coming(self, chance: random.Random) -> None:
        names, weights = list(BEHAVIOURS), list(BEHAVIOURS.values())
        while time.monotonic() < self._end:
            (behaviour,) = chance.choices(names, weights)
            with socket.socket() as sock:
                sock.setblocking(False)
                heard = await self._visit(sock, behaviour, chance)
            if behaviour == "reset":
                continue
            if heard == GREETING:
                self.greeted += 1
            else:
                self.lost.append(f"{behaviour}: {heard!r}")

    async def _visit(self, sock: socket.socket, behaviour: str, chance: random.Random) -> bytes | str:
        """Connect once. Returns what was heard, or how it failed."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(PATIENCE):
                await loop.sock_connect(sock, ("127.0.0.1", self.process.port))
                if behaviour == "speak first":
                    await loop.sock_sendall(sock, b"x" * 18)
                elif behaviour == "dawdle":
                    await asyncio.sleep(chance.random() / 2)
                elif behaviour == "reset":
                    await asyncio.sleep(chance.random() / 100)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    return b""
                outcome = await read_to_end(sock)
        except OSError as error:  # TimeoutError is one
            return repr(error)
        return "a reset" if outcome.reset else outcome.data

    async def _totals(self) -> list[str]:
        """Wait until no connection is open. Returns what is wrong with the counters."""
        async with asyncio.timeout(PATIENCE):
            while await metric(self.process, "greeter_open_connections"):  # noqa: ASYNC110  # by a scrape
                await asyncio.sleep(0.1)
        accepted, greeted = [
            await metric(self.process, f"greeter_{name}_total") for name in ("accepted", "greeted")
        ]
        failed = {
            name: await metric(self.process, f'greeter_failed_total{{class="{name}"}}')
            for name in ("reset", "aborted", "greeting_error", "greet_timeout")
        }
        lost = f"{len(self.lost)} lost of {self.killed} whose workers were killed"
        print(f"{accepted} accepted, {greeted} greeted, {lost}, failed: {failed}", flush=True)
        problems = []
        if accepted != greeted + sum(failed.values()):
            problems.append(f"{accepted} accepted, but {greeted} greeted and {failed} failed")
        # Not reset: nothing had been sent to them, so that none of them was counted as greeted.
        empty = sum(heard.endswith("b''") for heard in self.lost)
        if not empty <= failed["aborted"] <= self.killed >= len(self.lost):
            problems.append(f"{lost}, {failed['aborted']} aborted: {self.lost[:20]}")
        if not self.greeted:
            problems.append("no client was greeted")
        return problems

    async def _growth(self) -> list[str]:
        """Compare the parent with what it was, when no worker is being replaced. Returns what has grown."""
        part = max(1, len(self._memory) // 5)
        memory = min(self._memory[-part:]) - min(self._memory[:part])
        problems = [f"the parent has grown by {memory} bytes"] if memory > GROWTH else []
        try:
            await until(lambda: descriptors(self.process.pid) <= self._descriptors, "as many as at the start")
        except AssertionError:
            more = descriptors(self.process.pid) - self._descriptors
            problems.append(f"the parent has {more} more descriptors")
        return problems


async def soak(loop: str, accept: str, seconds: float, seed: int, app: Path) -> list[str]:
    """Run a service on one event loop and accept path. Returns what is wrong."""
    args = ["serve", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--no-access-log"]
    # So long that no client, which this process may keep from speaking, meets a deadline.
    args += [word for name in ("greet", "linger", "drain") for word in (f"--{name}-timeout", f"{PATIENCE:g}")]
    args += ["--loop", loop, "--accept", accept, "--workers", "2", "--app", "soak_app:hello"]
    async with greeter_process(*args, env={"PYTHONPATH": str(app)}) as process:
        problems = await Soak(process, seconds, f"{seed} {loop} {accept}").run()
    return [f"{loop}, {accept}: {problem}" for problem in problems]


def soak_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Serve under load and kills.")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (default: 600)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="what all is drawn from")
    return parser


async def main() -> int:
    """Run all services at once. Returns the exit code."""
    options = soak_parser().parse_args()
    print(f"{options.seconds:g} s with --seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as app:
        (Path(app) / "soak_app.py").write_text(APP)
        found = await asyncio.gather(
            *(soak(loop, path, options.seconds, options.seed, Path(app)) for loop, path in STAGES)
        )
    problems = [problem for each in found for problem in each]
    print("\n".join(problems) or "nothing was lost but what was killed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

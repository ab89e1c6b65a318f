"""What surrounds a service: something that starts it as an init system does, and clients that keep coming."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.conftest import PATIENCE, ROOT, Process, loop_factories
from tests.support.peers import read_within_tls

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

HELLO = b"Thank you for connecting"
# What a client of a Crowd says first.
QUESTION = b"Hello, is there anybody in there?"
STAGES = [(loop, path) for loop in loop_factories() for path in ("streams", "direct")]


async def on_every_stage(play: Callable[[str, str], Awaitable[None]]) -> None:
    """Play it with each pair of loop and accept path, all at once: most of what a service does is wait."""

    async def named(loop: str, path: str) -> None:
        try:
            await play(loop, path)
        except Exception as error:
            error.add_note(f"({loop}, {path})")
            raise

    async with asyncio.TaskGroup() as group:
        for stage in STAGES:
            group.create_task(named(*stage))


# Puts descriptors where systemd puts them, from 3 on, limits how many there may be, and becomes greeter.
INIT = """
import json, os, resource, sys
fds, files = json.loads(sys.argv[1])
for place, fd in enumerate(fds):
    os.dup2(fd, 3 + place)
if fds:
    os.environ.update(LISTEN_FDS=str(len(fds)), LISTEN_PID=str(os.getpid()))
if files:
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
os.execv(sys.executable, [sys.executable, "-m", "greeter", *sys.argv[2:]])
"""


# An app with a stop delay of 0.123 s that goes on until the file is there which the variable OVER names.
LONG_STOP_DELAY = """
import asyncio, os

sleep = asyncio.sleep

async def sleep_longer(seconds, *args):
    await sleep(seconds, *args)
    while seconds == 0.123 and not os.path.exists(os.environ["OVER"]):
        await sleep(0.01)

asyncio.sleep = sleep_longer
hello = "Thank you for connecting"
"""


@contextlib.asynccontextmanager
async def running(
    *command: str,
    ready: str = "Listening on ",
    env: Mapping[str, str] | None = None,
    fds: tuple[int, ...] = (),
    cwd: Path = ROOT,
) -> AsyncIterator[Process]:
    """A program in its own process, entered when its stderr has a line with ``ready``."""
    child = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        cwd=cwd,
        pass_fds=fds,
        env={**os.environ, **(env or {})},
    )
    process = Process(child)
    try:
        if ready:
            line = await process.line_with(ready)
            process.address = line.partition(ready)[2].split(" ")[0]
        yield process
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        with contextlib.suppress(asyncio.LimitOverrunError):
            await child.communicate()


def started_by_init(
    *args: str,
    sockets: tuple[socket.socket, ...] = (),
    files: int = 0,
    ready: str = "Listening on ",
    env: Mapping[str, str] | None = None,
) -> contextlib.AbstractAsyncContextManager[Process]:
    """``greeter ARGS`` with listening sockets from descriptor 3 on, and no more than so many open files."""
    fds = tuple(sock.fileno() for sock in sockets)
    return running(sys.executable, "-c", INIT, json.dumps([fds, files]), *args, ready=ready, fds=fds, env=env)


def descriptors(pid: int, kind: str = "") -> int:
    """How many a process has open, of all or of a kind such as ``socket:``."""
    found = 0
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed since
            found += os.readlink(f"/proc/{pid}/fd/{fd}").startswith(kind)
    return found


def children(pid: int) -> list[int]:
    """The processes that a process has started and not yet waited for."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def stopped(pid: int) -> bool:
    """Whether a process stands still, after SIGSTOP."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


async def lines_with(process: Process, text: str, count: int) -> list[str]:
    """The first ``count`` lines of stderr with ``text`` in them, as soon as there are so many."""
    assert process.process.stderr is not None
    async with asyncio.timeout(PATIENCE):
        while len(found := [line for line in process.lines if text in line]) < count:
            raw = await process.process.stderr.readline()
            assert raw, f"{len(found)} lines with {text!r} in {process.lines}"
            process.lines.append(raw.decode().removesuffix("\n"))
    return found[:count]


async def metric(process: Process, name: str) -> int:
    """What a service counts under ``name``, from its metrics."""
    line = await process.line_with("Metrics on ")
    return int((await scrape(line.rpartition("Metrics on ")[2]))[name])


async def scrape(address: str) -> dict[str, float]:
    """All metrics of a service, by name with labels. ``address`` is what its log says.

    Raises ConnectionError if the answer is no list of metrics.
    """
    if address.startswith("unix:"):
        reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"))
    else:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: greeter\r\n\r\n")
        text = (await reader.read()).decode()
    finally:
        writer.close()
        await writer.wait_closed()
    if not text.startswith("HTTP/1.1 200 "):
        raise ConnectionError(f"the answer is {text[:500]!r}")
    rows = [row.rsplit(" ", 1) for row in text.splitlines() if row.startswith(("greeter_", "process_"))]
    return {name: float(value) for name, value in rows}


class Crowd:
    """Clients in a closed loop: each comes, says something, listens to the end, and comes again at once.

    A visit ends in one of three ways. It is ``greeted`` when ``whole`` says so of what was heard and of
    the client's own port, and the stream ended in order. It is ``refused`` when there was no connection;
    then that client comes no more. Everything else is ``lost``, in words. ``present`` are on a visit.

    ``header`` is sent before all else, a PROXY header say, and ``tls`` is a context to speak TLS with.
    """

    def __init__(
        self,
        port: int,
        whole: Callable[[bytes, int], bool],
        host: str = "127.0.0.1",
        *,
        header: bytes = b"",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.greeted = self.refused = self.present = 0
        self.lost: list[str] = []
        self._header = header
        self._tls = tls
        self._where = (host, port)
        self._whole = whole
        self._leaving = False
        self._marks: list[tuple[int, asyncio.Future[None]]] = []
        self._connecting: dict[asyncio.Task[None], socket.socket] = {}

    async def more(self, visits: int) -> None:
        """Wait until so many more have been greeted; raises when one is lost meanwhile."""
        mark: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._marks.append((self.greeted + visits, mark))
        async with asyncio.timeout(PATIENCE):
            await mark

    def leave(self) -> None:
        """Finish the visits that are under way and come no more."""
        self._leaving = True

    def give_up(self) -> None:
        """The server listens no more: clients without a connection count as refused, without the wait for it.

        A SYN that was dropped at the stop is sent again after a second, and refused then.
        """
        for task, sock in self._connecting.items():
            try:
                sock.getpeername()
            except OSError:
                task.cancel()

    async def keep_coming(self) -> None:
        """The life of one client."""
        while not self._leaving and not self.lost:
            with socket.socket() as sock:
                sock.setblocking(False)
                self.present += 1
                try:
                    if not await self._connect(sock):
                        self.refused += 1
                        return
                    await self._listen(sock)
                finally:
                    self.present -= 1

    async def _connect(self, sock: socket.socket) -> bool:
        connecting = asyncio.ensure_future(asyncio.get_running_loop().sock_connect(sock, self._where))
        self._connecting[connecting] = sock
        try:
            await connecting
        except (ConnectionRefusedError, asyncio.CancelledError):  # either way, this client ends here
            return False
        finally:
            del self._connecting[connecting]
        return True

    async def _listen(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        heard = b""
        port = sock.getsockname()[1]
        try:
            async with asyncio.timeout(PATIENCE):
                if self._tls is None:
                    await loop.sock_sendall(sock, self._header + QUESTION)
                else:
                    host = self._where[0]
                    heard = await read_within_tls(sock, self._tls, host, header=self._header, say=QUESTION)
                while chunk := await loop.sock_recv(sock, 65536):
                    heard += chunk
        except OSError as error:
            self._lose(f"after {heard!r}: {error!r}")
            return
        if not self._whole(heard, port):
            self._lose(f"by an orderly end after {heard!r}")
            return
        self.greeted += 1
        for wanted, mark in self._marks:
            if wanted <= self.greeted and not mark.done():
                mark.set_result(None)

    def _lose(self, how: str) -> None:
        self.lost.append(how)
        for _, mark in self._marks:
            if not mark.done():
                mark.set_exception(AssertionError(f"a client was lost {how}"))


@contextlib.asynccontextmanager
async def crowd(
    port: int,
    *,
    clients: int = 60,
    whole: Callable[[bytes, int], bool] = lambda heard, _: heard == HELLO,
    header: bytes = b"",
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Crowd]:
    """So many clients for as long as the block runs; it is left when the last of them has left."""
    asyncio.get_running_loop().set_debug(False)  # which would be most of the load
    them = Crowd(port, whole, header=header, tls=tls)
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(them.keep_coming())
        try:
            yield them
        finally:
            them.leave()

"""Services with every kind of greeting and preamble: stopped, reloaded, short of descriptors, paused, idle.

tests/test_stop.py does so for a fixed greeting. Here, most connections outlive the call that accepts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import socket
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme

from greeter import greet
from greeter.server.timeouts import PAUSE_SECONDS
from greeter.system.tls import client_context
from tests.conftest import PATIENCE, Process, greeter_process, one_loop
from tests.core.test_proxy_protocol import tcp4
from tests.support.peers import Outcome, connect, read_to_end, reset, until
from tests.support.proc import wakeups
from tests.support.service_peers import (
    HELLO,
    STAGES,
    crowd,
    descriptors,
    lines_with,
    on_every_stage,
    started_by_init,
)

# The loops under test are those of the services, not the one that watches them.
pytestmark = [pytest.mark.thorough, one_loop]

HEADER = tcp4("192.0.2.1", "198.51.100.7", "56324", "443")
SERVE = ("serve", "--listen", "127.0.0.1:0", "--no-access-log")
PROXY = ("--proxy-protocol", "--proxy-from", "127.0.0.0/8")
STOPS = 12  # of each kind, over all stages
RELOADS = 8  # over all stages

APP = f"""
import asyncio, itertools, time
from greeter import Greeting

HELLO = {HELLO!r}
pauses = itertools.cycle([0.001, 0.002, 0.003, 0.004, 0.005])

async def later(peer):
    await asyncio.sleep(next(pauses))
    return HELLO

async def at_once(peer):
    return HELLO

async def never(peer):
    await asyncio.Event().wait()

def thread(peer):
    time.sleep(0.001)
    return HELLO

quick = Greeting(lambda peer: HELLO, quick=True)
large = b"g" * 4_000_000
"""


@dataclass
class Kind:
    """How a service is started, and what its clients have to send and to speak."""

    args: tuple[str, ...] = ()
    header: bytes = b""
    tls: ssl.SSLContext | None = None
    env: dict[str, str] = field(default_factory=dict)


class Kinds:
    """The kinds that are not known at accept, each by its name."""

    def __init__(self, directory: Path) -> None:
        (directory / "kinds_app.py").write_text(APP)
        self.env = {"PYTHONPATH": str(directory)}
        authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
        authority.cert_pem.write_to_path(directory / "ca.pem")
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_and_cert_chain_pem.write_to_path(directory / "both.pem")
        context = client_context(directory / "ca.pem")
        app = ("--app", "kinds_app:later")
        tls = ("--tls-cert", str(directory / "both.pem"))
        self._kinds = {
            "fixed": Kind(),
            "async": Kind(app),
            "tls": Kind(tls, tls=context),
            "proxy": Kind(PROXY, HEADER),
            "proxy, tls, async": Kind((*PROXY, *tls, *app), HEADER, context),
        }

    def __getitem__(self, name: str) -> Kind:
        kind = self._kinds[name]
        kind.env = self.env
        return kind


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Kinds:
    return Kinds(tmp_path_factory.mktemp("kinds"))


def last_line(service: Process) -> str:
    return service.lines[-1]


# -- stops and reloads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["async", "tls", "proxy"])
async def test_stops_under_load_lose_no_client(name: str, kinds: Kinds) -> None:
    kind = kinds[name]

    async def play(loop: str, path: str) -> None:
        args = (*SERVE, "--loop", loop, "--accept", path, *kind.args)
        for _ in range(STOPS // len(STAGES)):
            async with (
                greeter_process(*args, env=kind.env) as service,
                crowd(service.port, clients=20, header=kind.header, tls=kind.tls) as clients,
            ):
                await clients.more(60)
                assert await service.stop() == 0
                clients.give_up()
            assert clients.lost == []
            assert clients.refused > 0, "the stop came while they were there"
            heard = clients.greeted
            assert last_line(service) == f"Stopped: {heard} greeted of {heard} accepted, 0 failed"

    await on_every_stage(play)


async def test_reloads_of_workers_under_load_lose_and_refuse_no_client(kinds: Kinds) -> None:
    kind = kinds["async"]

    async def play(loop: str, path: str) -> None:
        args = (*SERVE, "--loop", loop, "--accept", path, "--workers", "2", *kind.args)
        async with greeter_process(*args, env=kind.env) as service:
            async with crowd(service.port, clients=10) as clients:
                for number in range(1, RELOADS // len(STAGES) + 1):
                    await clients.more(20)
                    service.process.send_signal(signal.SIGHUP)
                    await lines_with(service, "Reloaded", number)
                await clients.more(20)
            assert await service.stop() == 0
        assert clients.lost == []
        assert clients.refused == 0
        heard = clients.greeted
        assert last_line(service) == f"Stopped: {heard} greeted of {heard} accepted, 0 failed"

    await on_every_stage(play)


# -- a shortage of descriptors -----------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """What a process has used, in user and system mode (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_with_64_descriptors_150_clients_that_stay_are_greeted(kinds: Kinds) -> None:
    async def play(kind: Kind, loop: str, path: str) -> None:
        args = (*SERVE, "--loop", loop, "--accept", path, "--linger-timeout", "60", *kind.args)
        async with started_by_init(*args, files=64, env=kind.env) as service:
            with contextlib.ExitStack() as held:
                clients = [held.enter_context(await connect(service.port)) for _ in range(150)]
                for client in clients:
                    client.send(kind.header)
                await service.line_with("connections: accepting is paused")
                before = cpu_seconds(service.pid)
                await asyncio.sleep(1)
                assert cpu_seconds(service.pid) - before < 0.2
                for client in clients:
                    assert await read_to_end(client) == Outcome(HELLO, reset=False)
            assert await service.stop() == 0
        assert last_line(service) == "Stopped: 150 greeted of 150 accepted, 0 failed"
        assert len(service.lines) < 30

    await asyncio.gather(
        *(on_every_stage(functools.partial(play, kinds[name])) for name in ("fixed", "async", "proxy"))
    )


async def test_many_listening_sockets_leave_descriptors_for_clients() -> None:
    """A reserve for each that nothing needs would leave room for one client."""

    async def play(loop: str, path: str) -> None:
        endpoints = [each for _ in range(13) for each in ("--listen", "127.0.0.1:0")]
        args = ("serve", *endpoints, "--no-access-log", "--loop", loop, "--accept", path)
        async with started_by_init(*args, "--linger-timeout", "60", files=256) as service:
            with contextlib.ExitStack() as held:
                clients = [held.enter_context(await connect(service.port)) for _ in range(70)]
                for client in clients:
                    heard = await asyncio.get_running_loop().sock_recv(client, 1)
                    assert heard == HELLO[:1], "while the others stay"
            assert await service.stop() == 0
        assert not [line for line in service.lines if "paused" in line]

    await on_every_stage(play)


# -- pauses of the process -----------------------------------------------------------------------------------

# Within it, all clients connect.
GREET_TIMEOUT = 2.5
# A timer that is late by no more than PAUSE_SECONDS is enforced, and a handshake takes a moment.
STOPPED_SECONDS = GREET_TIMEOUT + 3 * PAUSE_SECONDS


async def test_a_pause_of_the_process_costs_no_client_that_spoke_meanwhile(kinds: Kinds) -> None:
    """Those that never speak are cut off all the same, and those that dribble."""

    async def dribble(sock: socket.socket, start: bytes) -> float:
        """Send a byte now and then; return when it was cut off."""
        ended = asyncio.create_task(read_to_end(sock))
        for at in range(len(start) - 1):
            if ended.done():
                assert (await ended).data == b""
                return time.monotonic()
            with contextlib.suppress(OSError):
                sock.send(start[at : at + 1])
            await asyncio.wait([ended], timeout=GREET_TIMEOUT / 10)
        raise AssertionError("it was not cut off")

    async def play(kind: Kind, loop: str, path: str) -> None:
        start = kind.header or _client_hello(kind)
        args = (*SERVE, "--loop", loop, "--accept", path, "--greet-timeout", str(GREET_TIMEOUT), *kind.args)
        async with greeter_process(*args, env=kind.env) as service:
            at_rest = descriptors(service.pid, "socket:")
            speakers = [await connect(service.port) for _ in range(10)]
            silent = [await connect(service.port) for _ in range(5)]
            dribblers = [await connect(service.port) for _ in range(3)]
            await until(
                lambda: descriptors(service.pid, "socket:") == at_rest + 18, "all of them are accepted"
            )
            service.process.send_signal(signal.SIGSTOP)
            greeted = [asyncio.create_task(_greeted(sock, kind)) for sock in speakers]
            await asyncio.sleep(STOPPED_SECONDS)
            service.process.send_signal(signal.SIGCONT)
            begun = time.monotonic()
            dribbling = [asyncio.create_task(dribble(sock, start)) for sock in dribblers]
            assert await asyncio.gather(*greeted) == [HELLO] * 10
            for sock in silent:
                assert (await read_to_end(sock)).data == b""
            for ended in await asyncio.gather(*dribbling):
                assert ended - begun < 3 * GREET_TIMEOUT
            assert await service.stop() == 0
        assert last_line(service).startswith("Stopped: 10 greeted of 18 accepted, 8 failed")

    await asyncio.gather(*(on_every_stage(functools.partial(play, kinds[name])) for name in ("proxy", "tls")))


def _client_hello(kind: Kind) -> bytes:
    outgoing = ssl.MemoryBIO()
    assert kind.tls is not None
    tls = kind.tls.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


async def _greeted(sock: socket.socket, kind: Kind) -> bytes:
    """What a client hears that goes through all of it on a connected socket."""
    reader, writer = await asyncio.open_connection(sock=sock)
    if kind.header:
        writer.write(kind.header)
    if kind.tls is not None:
        await writer.start_tls(kind.tls, server_hostname="127.0.0.1")
    async with asyncio.timeout(PATIENCE):
        heard = await reader.read()
    writer.close()
    with contextlib.suppress(ssl.SSLError, OSError):  # the server has closed meanwhile
        await writer.wait_closed()
    return heard


# -- an idle server ----------------------------------------------------------------------------------------

WATCHED_SECONDS = 3.0


async def is_idle(service: Process) -> None:
    """Wait until the service is at rest, and watch it for some seconds."""
    async with asyncio.timeout(PATIENCE):
        before = -1
        while before != wakeups(service.pid):
            before = wakeups(service.pid)
            await asyncio.sleep(1)  # longer than any time-out of a client
    await asyncio.sleep(WATCHED_SECONDS)
    assert wakeups(service.pid) - before <= 1


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="wake-ups are counted in /proc")
async def test_a_server_that_has_served_every_kind_makes_no_wakeups(kinds: Kinds, tmp_path: Path) -> None:
    greetings = [
        "greeting = 'to :$host'",
        "app = 'kinds_app:quick'",
        "app = 'kinds_app:thread'",
        "app = 'kinds_app:at_once'",
        "app = 'kinds_app:later'",
        "app = 'kinds_app:large'",
        "app = 'kinds_app:never'",
    ]

    async def every_kind(loop: str, path: str) -> None:
        config = tmp_path / f"{loop}-{path}.toml"
        config.write_text(f"greeting = '{HELLO.decode()}'\n")
        args = (*SERVE, "--loop", loop, "--accept", path, "--config", str(config), *SHORT)
        async with greeter_process(*args, env=kinds.env) as service:
            for number, greeting in enumerate(["", *greetings]):
                if greeting:
                    config.write_text(f"{greeting}\n")
                    service.process.send_signal(signal.SIGHUP)
                    await lines_with(service, "Reloaded", number)
                await visit(service, greeting.rpartition(":")[2].strip("'"))
            await is_idle(service)
            assert await service.stop() == 0

    async def preamble(loop: str, path: str) -> None:
        kind = kinds["proxy, tls, async"]
        args = (*SERVE, "--loop", loop, "--accept", path, *SHORT, *kind.args)
        async with greeter_process(*args, env=kind.env) as service:
            socks = [await connect(service.port) for _ in range(10)]
            heard = await asyncio.gather(*(_greeted(sock, kind) for sock in socks))
            assert heard == [HELLO] * 10
            starts = (b"", HEADER[:5], HEADER, HEADER + _client_hello(kind), b"garbage")
            await asyncio.gather(*(cut_short(service, start) for start in starts))
            await is_idle(service)
            assert await service.stop() == 0

    async def both(loop: str, path: str) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(every_kind(loop, path))
            group.create_task(preamble(loop, path))

    await on_every_stage(both)


SHORT = ("--greet-timeout", "1.5", "--linger-timeout", "0.4")


async def cut_short(service: Process, start: bytes) -> None:
    """Clients that begin with ``start``, and then reset, send no more or wait."""
    early, late, half = [await connect(service.port) for _ in range(3)]
    for sock in (early, late, half):
        sock.send(start)
    reset(early)
    with contextlib.suppress(OSError):  # on a busy machine, its deadline has passed
        half.shutdown(socket.SHUT_WR)
    await read_to_end(half)
    await read_to_end(late)


async def visit(service: Process, kind: str) -> None:
    """Clients that listen to the end, leave early, never read, and never close."""
    never = kind == "never"
    if not never:
        many = await asyncio.gather(*(greet(port=service.port, max_bytes=10_000_000) for _ in range(20)))
        assert all(reply.data for reply in many)
    early = await connect(service.port)
    reset(early)
    if kind in ("", "large", "never"):
        waiting, silent = [await connect(service.port, receive_buffer=4096) for _ in range(2)]
        longer_than_any_timeout = asyncio.sleep(1.8 if kind else 0.5)
        heard, _ = await asyncio.gather(read_to_end(waiting), longer_than_any_timeout)
        assert bool(heard.data) != never
        silent.close()

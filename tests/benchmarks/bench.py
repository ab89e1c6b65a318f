"""What a group of rows is given: rounds to make, servers that are up, and the load.

Invariants:
- A group says what it compares and how often. How a server is started, where it runs and how it ends is
  here.
- What this machine lacks is left out, and the report says what and why.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from tests.benchmarks import machine
from tests.benchmarks.certificate import Certificate, make_certificate
from tests.benchmarks.haproxy import HAProxy, find_haproxy
from tests.benchmarks.load import GREETING, Load, TLSLoad, compile_c
from tests.benchmarks.nginx import Nginx, find_nginx
from tests.benchmarks.process import (
    PATIENCE,
    ROOT,
    Process,
    WouldNotStart,
    environment,
    on_processor,
    processors,
)
from tests.support.free_ports import free_port

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    # True if the server on that port is up.
    Probe = Callable[[int], bool]

T = TypeVar("T")

# A quick run takes this share of the time of a full one.
QUICK = 1 / 7


@dataclass(frozen=True)
class Contender:
    """A server that can be started: its name in the table, and the command that serves on a port.

    ``ours`` has to start; of the others, one that does not is left out.
    """

    name: str
    command: Callable[[int], Sequence[str]]
    ours: bool = False


@dataclass(frozen=True)
class Server:
    """A server that is up."""

    name: str
    port: int
    process: Process


class Bench:
    """One run.

    Args:
        folder: For whatever it writes.
        quick: Less of everything.
        rounds: Overrides how many each group makes.
        clients: Overrides how many the group ``scale`` holds.
    """

    def __init__(
        self, folder: Path, *, quick: bool = False, rounds: int | None = None, clients: int | None = None
    ) -> None:
        self.folder = folder
        self.quick = quick
        self.clients = clients
        self._rounds = rounds
        self.measured, self.other = processors()
        self.loops = ("asyncio", "uvloop") if machine.has_uvloop() else ("asyncio",)
        self.left_out: dict[str, str] = {}
        self._started = 0

    # -- what the machine has

    @cached_property
    def nginx(self) -> Nginx | str:
        """nginx, or why there is none."""
        return find_nginx()

    @cached_property
    def haproxy(self) -> HAProxy | str:
        """HAProxy, or why there is none."""
        return find_haproxy()

    @cached_property
    def programs(self) -> dict[str, str] | str:
        """The paths of our programs in C, by name, or why there are none."""
        compiler = machine.compiler()
        if compiler is None:
            return "no C compiler"
        try:
            return {name: compile_c(name, self.folder, compiler) for name in ("load", "floor")}
        except WouldNotStart as error:
            return f"{compiler} does not compile: {error}"

    @cached_property
    def holders(self) -> str:
        """The path of the program whose clients are held; "" if there is none, and ``left_out`` says why."""
        compiler = machine.compiler()
        try:
            if compiler is None:
                raise WouldNotStart("no C compiler")
            return compile_c("hold", self.folder, compiler)
        except WouldNotStart as error:
            self.left_out["scale"] = f"hold.c: {error}"
            return ""

    @cached_property
    def certificate(self) -> Certificate | str:
        """The certificate of every TLS server here, or why there is none."""
        return make_certificate(self.folder)

    @cached_property
    def load(self) -> Load:
        """Clients that send nothing."""
        return self.load_that_sends()

    def load_that_sends(self, *payloads: bytes, times: int = 1) -> Load:
        """Clients that send one of ``payloads`` right after they connect, taken in turn.

        They expect the greeting so many ``times``.
        """
        program = None if isinstance(self.programs, str) else self.programs["load"]
        return Load(program, self.other, payloads, times=times)

    @cached_property
    def tls_load(self) -> TLSLoad | str:
        """Clients over TLS, or why there are none."""
        compiler = machine.compiler()
        if compiler is None:
            return "no C compiler, and the load in Python has no TLS"
        if isinstance(self.certificate, str):
            return self.certificate
        try:
            program = compile_c("load_tls", self.folder, compiler)
        except WouldNotStart as error:
            return f"load_tls.c does not compile (on Debian: apt-get install libssl-dev): {error}"
        return TLSLoad(program, self.other, self.certificate.cert)

    @cached_property
    def datagram_load(self) -> Load | str:
        """Clients over UDP, or why there are none."""
        compiler = machine.compiler()
        if compiler is None:
            return "no C compiler, and the load in Python has no datagrams"
        try:
            program = compile_c("load_datagrams", self.folder, compiler)
        except WouldNotStart as error:
            return f"load_datagrams.c does not compile: {error}"
        return Load(program, self.other, (b"?",))

    def facts(self) -> dict[str, str]:
        """Everything that the figures depend on."""
        facts = machine.facts()
        facts["nginx"] = self.nginx if isinstance(self.nginx, str) else self.nginx.version
        facts["haproxy"] = self.haproxy if isinstance(self.haproxy, str) else self.haproxy.version
        compiler = machine.compiler()
        if isinstance(self.programs, str) or compiler is None:
            facts["compiler"] = f"{self.programs}; so the load is in Python, and there is no C floor"
        else:
            facts["compiler"] = machine.first_line(compiler, "--version")
        if self.measured is None:
            facts["pinning"] = "none: there is one processor, which server and load share"
        else:
            facts["pinning"] = f"what is measured on cpu {self.measured}, the load on cpu {self.other}"
        return facts

    # -- rounds

    def size(self, full: int, quick: int) -> int:
        """How much to do in a round."""
        return quick if self.quick else full

    def rounds(self, full: int, quick: int, *, seconds: float) -> Iterator[int]:
        """The numbers of the rounds to make, from 0.

        No round begins after ``seconds`` (a quick run: a share of them), so a slow machine makes fewer; one
        is always made, and a number of rounds that was asked for is made in full.
        """
        wanted = self._rounds or self.size(full, quick)
        end = time.monotonic() + seconds * (QUICK if self.quick else 1)
        for number in range(wanted):
            if number and self._rounds is None and time.monotonic() > end:
                return
            self.say(f"round {number + 1} of {wanted}")
            yield number

    def say(self, what: str) -> None:
        """Show progress, if stderr is a terminal."""
        if sys.stderr.isatty():
            print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)

    # -- servers

    @contextlib.contextmanager
    def serving(
        self,
        contenders: Sequence[Contender],
        *,
        probe: Probe | None = None,
        measured: bool = True,
        patience: float = PATIENCE,
        anywhere: bool = False,
    ) -> Iterator[list[Server]]:
        """Those of ``contenders`` that start, up; stopped at the end.

        Args:
            contenders: The servers to start, one after the other.
            probe: Whether a server is up; by default, whether it greets a client that sends nothing.
            measured: They run where servers are measured; otherwise, where the load does.
            patience: Seconds until one that is not up will not start.
            anywhere: They run on every processor instead.
        """
        processor = None if anywhere else self.measured if measured else self.other
        with contextlib.ExitStack() as stack:
            servers = []
            for contender in contenders:
                try:
                    servers.append(self._start(contender, stack, processor, probe or greets, patience))
                except WouldNotStart as error:
                    if contender.ours:
                        raise
                    self.left_out[contender.name] = f"would not start: {error}"
            try:
                yield servers
            finally:
                for server in servers:  # so that they stop at the same time
                    server.process.terminate()

    def _start(
        self,
        contender: Contender,
        stack: contextlib.ExitStack,
        processor: int | None,
        probe: Probe,
        patience: float,
    ) -> Server:
        self.say(f"starting {contender.name}")
        port = free_port()
        self._started += 1
        log = self.folder / f"server-{self._started}.log"
        process = Process(contender.command(port), log, processor)
        stack.callback(process.stop)
        end = time.monotonic() + patience
        while not probe(port):
            process.check()
            if time.monotonic() > end:
                raise WouldNotStart(f"it was not up within {patience:g} s")
            time.sleep(0.02)
        return Server(contender.name, port, process)

    # -- programs that end by themselves

    def output(self, *argv: str) -> str:
        """What a Python program prints that runs where servers are measured."""
        with on_processor(self.measured):
            done = subprocess.run(
                [sys.executable, *argv],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                cwd=ROOT,
                env=environment(),
            )
        if done.returncode:
            raise WouldNotStart(f"{' '.join(argv)}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        return done.stdout


def counted(count: int, what: str) -> str:
    """``1 round``, ``2 rounds``."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def rotated(items: Sequence[T], number: int) -> list[T]:
    """``items``, beginning with another one in each round, so that none always follows the same one."""
    first = number % len(items)
    return [*items[first:], *items[:first]]


def listens(port: int) -> bool:
    """True if a server accepts connections on the port."""
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()
    except OSError:
        return False
    return True


def greets(port: int, payload: bytes = b"", context: ssl.SSLContext | None = None, *, times: int = 1) -> bool:
    """True if the server on the port greets a client.

    Args:
        port: Its port on 127.0.0.1.
        payload: What the client sends first.
        context: The client speaks TLS with it.
        times: The greeting is GREETING so many times.
    """
    data = b""
    try:
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
            if context is not None:
                sock = stack.enter_context(context.wrap_socket(sock, server_hostname="127.0.0.1"))
            sock.sendall(payload)
            while chunk := sock.recv(65536):
                data += chunk
    except OSError:
        return False
    return data == GREETING * times


def answers(port: int) -> bool:
    """True if the server on the port answers a datagram with the greeting."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(("127.0.0.1", port))
        try:
            sock.send(b"?")
            return sock.recv(1024) == GREETING
        except OSError:
            return False

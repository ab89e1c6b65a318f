"""The service under test, if it serves streams: what it says, and the clients that ask it.

Invariants:

- At most ``MAX_CLIENTS`` clients are connected at once, but for those that a check holds open on purpose, so
  that a short accept queue is not taken for a fault of something else.
- A control client only listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, TypeAlias

from greeter.conformance.dial import Dial
from greeter.conformance.findings import Ending, Experience, Tally
from greeter.conformance.probe import Ended, Probe
from greeter.conformance.target_service import TargetService
from greeter.errors import ConfigError, ConnectFailed
from greeter.system.loops import run_in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from greeter.conformance.check_plan import CheckPlan

    Script: TypeAlias = Callable[[Probe], Awaitable[Ending]]

MAX_CLIENTS = 4
# What every greeting must begin with, of those learnt: more would be taken for a refusal where the time or a
# serial number follows.
BEGINNING = 12


class TestedService(TargetService):
    """The service, as the checks see it.

    Args:
        plan: What to check.
        dials: How to connect to each of its addresses; the first is the one that is checked.
    """

    __test__ = False  # not for pytest

    @property
    def traits(self) -> set[str]:
        """What checks may need that this service has, see ``Check.needs``."""
        plan = self.plan
        traits = super().traits | ({"tls"} if plan.tls is not None else set())
        traits |= {"tcp"} if self.dial.family != socket.AF_UNIX else set()
        traits |= {"eof"} if plan.until.kind == "eof" else set()
        traits |= set() if plan.polite else {"junk"}
        return traits | ({"proxy"} if plan.proxy_protocol else set())

    async def client(
        self, script: Script, *, dial: Dial | None = None, timeout: float | None = None
    ) -> Experience:
        """Let one client follow ``script``, and return what it experienced."""
        async with Probe(dial or self.dial, timeout=timeout) as probe:
            return await followed(probe, script)

    async def clients(
        self, count: int, script: Script, *, at_once: int = MAX_CLIENTS, dial: Dial | None = None
    ) -> Tally:
        """Let ``count`` clients follow ``script``, at most ``at_once`` of them at the same time."""
        tally, slots = Tally(), asyncio.Semaphore(at_once)

        async def one() -> None:
            async with slots:
                tally.add(await self.client(script, dial=dial))

        async with self.watching_for_lateness():
            await asyncio.gather(*(one() for _ in range(count)))
        return tally

    async def crowd(self, count: int, script: Script, timeout: float) -> list[Experience]:
        """Let ``count`` clients follow ``script`` at the same moment."""
        async with self.watching_for_lateness():
            return await asyncio.gather(*(self.client(script, timeout=timeout) for _ in range(count)))

    async def control(self, timeout: float | None = None) -> Experience:
        """Let one client listen, and say whether it was greeted. A reset that follows is not looked for."""
        return await self.client(hears, timeout=timeout)

    @contextlib.asynccontextmanager
    async def held(self, count: int, script: Script) -> AsyncIterator[None]:
        """Hold ``count`` clients open that have followed ``script``, until the block ends."""
        probes: list[Probe] = []
        slots = asyncio.Semaphore(MAX_CLIENTS)

        async def one() -> None:
            async with slots:
                probe = Probe(self.dial)  # its deadline begins here
                probes.append(probe)
                await followed(probe, script)

        try:
            await asyncio.gather(*(one() for _ in range(count)))
            yield
        finally:
            for probe in probes:
                probe.close()


async def followed(probe: Probe, script: Script) -> Experience:
    """Let a client follow ``script``, and return what it experienced. It stays open."""
    try:
        ending = await script(probe)
    except Ended as end:
        ending = end.ending
    return probe.experience(ending)


async def hears(probe: Probe) -> Ending:
    """The script of a control client, which does not wait for what follows the greeting."""
    await probe.connect()
    return await hears_on(probe)


async def hears_on(probe: Probe) -> Ending:
    """The script of a client that has connected before."""
    await probe.proceed()
    await probe.listen()
    return probe.said()


async def listen_only(probe: Probe) -> Ending:
    """The script of a client that says no more than it must, and listens."""
    await probe.open()
    return await probe.finish()


async def dials(plan: CheckPlan) -> list[Dial]:
    """Resolve the target.

    Returns:
        How to connect to each of its addresses.

    Raises:
        ConfigError: It is not an endpoint that clients reach.
        ConnectFailed: Its name cannot be resolved.
    """
    target = plan.target
    if target.kind not in ("tcp", "unix", "udp"):
        raise ConfigError(
            f"{target} cannot be checked: a target is HOST:PORT, a Unix socket or udp:HOST:PORT"
        )
    kind = socket.SOCK_DGRAM if target.kind == "udp" else socket.SOCK_STREAM
    found: list[tuple[int, object]] = []
    if target.kind == "unix":
        found = [(socket.AF_UNIX, target.path)]
    else:
        try:
            for family, _, _, _, address in await run_in_thread(
                lambda: socket.getaddrinfo(target.host or "localhost", target.port, type=kind)
            ):
                if (family, address) not in found:
                    found.append((family, address))
        except OSError as error:
            raise ConnectFailed(str(target), error) from error
    return [
        Dial(
            family,
            address,  # type: ignore[arg-type]  # what getaddrinfo returns
            plan.timeout,
            plan.until,
            plan.send,
            plan.proxy_protocol,
            plan.tls,
            plan.server_name or (target.host if plan.tls is not None else None),
            expect=plan.expect,
            begins=plan.begins,
            kind=kind,
        )
        for family, address in found
    ]

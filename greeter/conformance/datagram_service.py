"""The service under test, if it answers datagrams, and the clients that ask it.

Invariants:

- Each client has a socket of its own.
- On the loopback no datagram is lost on its way, so a client that is judged asks once. Another machine is
  asked again, as a client of datagrams has to: a loss on the way is not the service's.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from greeter.conformance.datagram_probe import DatagramProbe
from greeter.conformance.findings import Ending, Experience, Tally
from greeter.conformance.probe import Ended
from greeter.conformance.target_service import TargetService
from greeter.core.datagram_rules import classify_source
from greeter.core.datagram_sizes import REQUEST

if TYPE_CHECKING:
    from greeter.conformance.check_plan import CheckPlan
    from greeter.conformance.dial import Dial

FIRST_PAUSE = 0.5  # seconds until another machine is asked again; then twice as long, each time


class DatagramService(TargetService):
    """The service, as the checks of datagrams see it. Its arguments are those of TargetService."""

    def __init__(self, plan: CheckPlan, dials: list[Dial]) -> None:
        super().__init__(plan, dials)
        self.request = plan.send or REQUEST

    @property
    def traits(self) -> set[str]:
        """What checks may need that this service has, see ``Check.needs``."""
        unasked = set() if self.plan.send else {"unasked"}
        return super().traits | unasked | {"public" if self._is_public() else "private"}

    def _is_public(self) -> bool:
        """True if the service sees a client of this machine at an address outside the private networks."""
        with socket.socket(self.dial.family, socket.SOCK_DGRAM) as sock:
            try:
                sock.connect(self.dial.address)  # sends nothing
            except OSError:
                return False
            return classify_source(sock.getsockname()[0]) == "public"

    async def control(self, timeout: float | None = None) -> Experience:
        """Let one client ask whether the service greets. It asks again, as after a loss."""
        return await self.ask(timeout=timeout, again=True)

    async def ask(
        self, data: bytes | None = None, *, timeout: float | None = None, again: bool = False
    ) -> Experience:
        """Let one client send ``data``, or what it says by default, and return what it experienced."""
        timeout = self.plan.timeout if timeout is None else timeout
        try:
            async with DatagramProbe(self.dial) as probe:
                return await self.asked(probe, self.request if data is None else data, timeout, again=again)
        except OSError:  # no descriptor, or no address of its family
            return Experience(Ending.LOCAL)

    async def asked(
        self, probe: DatagramProbe, data: bytes, timeout: float, *, again: bool = False
    ) -> Experience:
        """Let a client send ``data``, and return what it experienced. It stays open."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        pause = FIRST_PAUSE if again or not self.local else timeout
        while True:
            try:
                probe.send(data)
                return probe.experience(await probe.reply(min(pause, max(0.0, end - loop.time()))))
            except Ended as ended:
                if ended.ending is not Ending.SILENT or loop.time() >= end:
                    return probe.experience(ended.ending)
            pause *= 2

    async def one_by_one(self, count: int, data: bytes) -> Tally:
        """Let ``count`` clients send ``data``, one after the other, until one has no reply."""
        tally = Tally()
        async with self.watching_for_lateness():
            while tally.total < count and not tally.all_but(Ending.GREETED):
                tally.add(await self.ask(data))
        return tally

    async def crowd(self, count: int) -> Tally:
        """Let ``count`` clients ask at the same moment."""
        async with self.watching_for_lateness():
            return Tally(await asyncio.gather(*(self.ask() for _ in range(count))))

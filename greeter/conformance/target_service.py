"""The service under test, as far as the run of a check needs it: of streams or of datagrams.

Invariants:

- A control client says whether the service still greets, and asks for nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from greeter.conformance.check_plan import CheckPlan
    from greeter.conformance.dial import Dial
    from greeter.conformance.findings import Experience

# A loop that runs this much late, in seconds, was too busy for its clients to be judged.
LATE = 0.5


class TargetService(ABC):
    """The service, as a run sees it.

    Args:
        plan: What to check.
        dials: How to reach each of its addresses; the first is the one that is checked.

    Attributes:
        greeting: The greeting as it was learnt.
        late: True if this process was too busy for its clients to be judged.
        stopped: True if a check has stopped the service and not started it again.
    """

    def __init__(self, plan: CheckPlan, dials: list[Dial]) -> None:
        self.plan = plan
        self.dials = dials
        self.dial = dials[0]
        self.greeting = b""
        self.late = False
        self.stopped = False

    @property
    def traits(self) -> set[str]:
        """What checks may need that this service has, see ``Check.needs``."""
        names = ("pid", "restart", "stop", "start")
        return {name for name in names if getattr(self.plan, name) is not None}

    @property
    def local(self) -> bool:
        """True if the service is reached over the loopback or a Unix socket."""
        host = self.dial.address[0] if isinstance(self.dial.address, tuple) else ""
        return isinstance(self.dial.address, str) or host.startswith("127.") or host == "::1"

    @property
    def gentle(self) -> bool:
        """True if few clients may ask at once: it is another machine's, and in use."""
        return not self.local and not self.plan.heavy

    @abstractmethod
    async def control(self, timeout: float | None = None) -> Experience:
        """Let one client ask whether the service greets."""

    @contextlib.asynccontextmanager
    async def watching_for_lateness(self) -> AsyncIterator[None]:
        """Set ``late`` if this process stood still meanwhile."""
        loop = asyncio.get_running_loop()

        async def watch() -> None:
            while True:
                before = loop.time()
                await asyncio.sleep(0.05)
                self.late = self.late or loop.time() - before > LATE

        watcher = asyncio.create_task(watch())
        try:
            yield
        finally:
            watcher.cancel()

"""Whether the workers of a parent serve and respond, for health checks.

Invariants:

- Workers are asked when a check asks. Without a check, nothing is done.
- Any report of a worker is a response: its event loop runs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from greeter.service.worker_process import WorkerProcess

# How long a check waits for a worker to respond. Kubernetes gives a probe 1 s by default.
RESPONSE_TIMEOUT = 0.9
# Without a response of any worker for so long, in seconds, the service is not alive.
ALIVE_SECONDS = 30.0


class WorkerHealth:
    """Asks workers whether they serve.

    Args:
        workers: The workers that run, which their supervisor keeps up to date.
    """

    def __init__(self, workers: Sequence[WorkerProcess]) -> None:
        self._workers = workers
        # Since when no worker serves, or none has responded to a request for reports. None: neither is so.
        self._silent_since: float | None = None

    async def unready(self) -> str:
        """Ask the workers for a response; one is enough.

        Returns:
            Why no client is served, or "" if a worker responds within RESPONSE_TIMEOUT.
        """
        asked = {worker.report(): worker for worker in self._workers if worker.ready_to_serve}
        if not asked:
            return "no worker is ready"
        loop = asyncio.get_running_loop()
        deadline = loop.time() + RESPONSE_TIMEOUT
        while asked:
            left = deadline - loop.time()
            done, _ = await asyncio.wait(asked, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if any(asked.pop(each).serving for each in done):  # the others have exited
                return ""
            if not done:
                break
        return "no worker responds"

    async def not_alive(self) -> str:
        """Ask the workers for a response, without waiting for it in general.

        An unanswered request of an earlier call counts from then on.

        Returns:
            Why the service is not alive: for ALIVE_SECONDS, no worker was up or none has responded. Else "".
        """
        self._notice_responses()
        now = asyncio.get_running_loop().time()
        for worker in self._workers:
            if worker.serving:
                worker.report()
        if self._silent_since is None:
            self._silent_since = now
        if now - self._silent_since < ALIVE_SECONDS:
            return ""
        why = await self.unready()  # after a pause of the machine, the workers get their time to respond
        self._notice_responses()
        return f"for {ALIVE_SECONDS:g} s, {why}" if why and self._silent_since is not None else ""

    def worker_exited(self, worker: WorkerProcess) -> None:
        """Take note that ``worker`` has exited. It is still in ``workers``."""
        self._notice_responses()
        if self._silent_since is None and not any(
            each.serving for each in self._workers if each is not worker
        ):
            self._silent_since = asyncio.get_running_loop().time()

    def _notice_responses(self) -> None:
        since = self._silent_since
        if since is not None and any(worker.responded_at >= since for worker in self._workers):
            self._silent_since = None

"""When accepting pauses and when it goes on, and how often that is logged.

Invariants:

- While accepting is paused, the accept queue keeps the clients that connect.
- A matter that repeats is logged once in LOG_INTERVAL, however often it happens.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from greeter.core.stats import PAUSED_MICROS

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from greeter.core.stats import ServerStats

logger = logging.getLogger("greeter")

# The system had no descriptor or no memory for a connection: try again after so many seconds.
RETRY_SECONDS = 0.5
# One log line in so many seconds about each matter that can repeat.
LOG_INTERVAL = 1.0


class LogLimit:
    """Limits how often the same matter is logged."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._next: dict[str, float] = {}  # when the next line about a matter may be logged

    def allows(self, matter: str) -> bool:
        """True once in LOG_INTERVAL for each ``matter``."""
        now = self._loop.time()
        if now < self._next.get(matter, 0.0):
            return False
        self._next[matter] = now + LOG_INTERVAL
        return True


class AcceptPause:
    """Pauses an accept path and resumes it.

    Args:
        loop: the event loop whose timer ends a pause for want of resources.
        log_limit: limits the log lines about pauses.
        stats: counts the time of pauses.
        pause: called when accepting has to pause.
        resume: called when it can go on.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        log_limit: LogLimit,
        stats: ServerStats,
        pause: Callable[[], None],
        resume: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._log_limit = log_limit
        self._stats = stats
        self._pause, self._resume = pause, resume
        self._paused = self._stopped = False
        self._counted_until = 0.0
        self._retry: asyncio.TimerHandle | None = None

    @property
    def accepting(self) -> bool:
        """Whether accepting is neither paused nor stopped."""
        return not (self._paused or self._stopped)

    @property
    def until_capacity(self) -> bool:
        """Whether a pause lasts until there is capacity again."""
        return self._paused and self._retry is None

    def pause(self, why: str, *, retry: bool = False) -> None:
        """Pause accepting. With ``retry`` it goes on after RETRY_SECONDS, else when ``end`` is called."""
        if not self._paused and not self._stopped:
            self._paused = True
            self._counted_until = self._loop.time()
            self._pause()
        if self._log_limit.allows("paused"):
            logger.warning(
                "%s: accepting is paused, the listen queue holds those who come",
                why,
                extra={"event": "paused"},
            )
        if retry and self._retry is None and not self._stopped:
            self._retry = self._loop.call_later(RETRY_SECONDS, self.end)

    def count_time(self) -> None:
        """Count the time of a pause that lasts, as far as it is not counted yet."""
        if self._paused:
            now = self._loop.time()
            self._stats.block[PAUSED_MICROS] += round((now - self._counted_until) * 1_000_000)
            self._counted_until = now

    def end(self) -> None:
        """Go on accepting."""
        self._clear()
        self._resume()

    def stop(self) -> None:
        """Accepting has stopped for good."""
        self._stopped = True
        self._clear()

    def _clear(self) -> None:
        self.count_time()
        self._paused = False
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

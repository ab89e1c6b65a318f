"""When accepting pauses and when it goes on, and how often that is logged.

Invariants:

- While accepting is paused, the accept queue keeps the clients that connect.
- A matter that repeats is logged once in LOG_INTERVAL, however often it happens.
- The last line about a pause is true within LOG_INTERVAL: it says "paused" while accepting is paused.
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
# As many matters are remembered before those whose interval is over are forgotten.
MAX_MATTERS = 64


class LogLimit:
    """Limits how often the same matter is logged."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._intervals: dict[str, tuple[float, int]] = {}  # by matter: the end of its interval, lines in it
        self._left_out: dict[str, int] = {}

    def allows(self, matter: str, lines: int = 1) -> bool:
        """Returns True for the first ``lines`` about ``matter`` in LOG_INTERVAL, and counts the others."""
        now = self._loop.time()
        end, logged = self._intervals.get(matter, (0.0, 0))
        if now >= end:
            if len(self._intervals) >= MAX_MATTERS:  # a matter may be the name of a type
                self._intervals = {name: one for name, one in self._intervals.items() if now < one[0]}
                self._left_out = {name: n for name, n in self._left_out.items() if name in self._intervals}
            end, logged = now + LOG_INTERVAL, 0
        elif logged >= lines:
            self._left_out[matter] = self._left_out.get(matter, 0) + 1
            return False
        self._intervals[matter] = end, logged + 1
        return True

    def take_left_out(self, matter: str) -> int:
        """Returns how many lines about ``matter`` were not allowed since the last call."""
        return self._left_out.pop(matter, 0)


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
        self._paused = self._stopped = self._logged = False
        self._why = ""
        self._counted_until = 0.0
        self._retry: asyncio.TimerHandle | None = None
        self._log_timer: asyncio.TimerHandle | None = None

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
        self._why = why
        self._log()
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
        self._log()
        self._resume()

    def stop(self) -> None:
        """Accepting has stopped for good."""
        self._stopped = True
        self._clear()
        if self._log_timer is not None:
            self._log_timer.cancel()
            self._log_timer = None

    def _log(self) -> None:
        """Log a pause, or its end if the pause was logged. If a line came just before, log it later."""
        if not self._paused and not self._logged:
            return
        if not self._log_limit.allows("paused" if self._paused else "resumed"):
            if self._paused != self._logged and self._log_timer is None and not self._stopped:
                self._log_timer = self._loop.call_later(LOG_INTERVAL, self._log_late)
        elif self._paused:
            self._logged = True
            logger.warning(
                "%s: accepting is paused, new connections wait in the accept queue",
                self._why,
                extra={"event": "paused", "error": self._why},
            )
        else:
            self._logged = False
            logger.info("accepting has resumed", extra={"event": "resumed"})

    def _log_late(self) -> None:
        self._log_timer = None
        if self._paused != self._logged:
            self._log()

    def _clear(self) -> None:
        self.count_time()
        self._paused = False
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

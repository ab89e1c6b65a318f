"""A clock for the load generator, so that the times of a run do not depend on the speed of the machine."""

from __future__ import annotations

import asyncio
import time
from math import inf
from typing import TYPE_CHECKING

import pytest

from greeter.loadtest.generator import engine
from greeter.loadtest.generator.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import MethodType


class Clock:
    """The engine's clock. It advances at once to the next time at which something is due.

    It stops while the engine is not ``settled``: by default, while a connection waits whose handler does not
    ``sleep`` on this clock. A test whose handlers do not sleep sets ``settled``.
    """

    def __init__(self) -> None:
        self.now = time.monotonic()
        self.asleep: list[tuple[float, asyncio.Future[None]]] = []
        self.settled: Callable[[Engine], bool] = self.all_asleep

    def all_asleep(self, engine: Engine) -> bool:
        """Whether the handler of each connection without a complete greeting sleeps."""
        return len(self.asleep) == len(engine._waiting)

    async def sleep(self, seconds: float) -> None:
        awake = asyncio.get_running_loop().create_future()
        self.asleep.append((self.now + seconds, awake))
        await awake


def connected(engine: Engine) -> bool:
    """Whether the engine has seen that all connections are connected."""
    return not engine._connecting


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()

    class FakeTimer:
        def __init__(self, loop: asyncio.AbstractEventLoop, callback: MethodType) -> None:
            self._loop, self._callback, self._when, self._closed = loop, callback, inf, False
            assert isinstance(callback.__self__, Engine)
            self._engine = callback.__self__
            loop.call_soon(self._look)

        def set(self, when: float) -> None:
            self._when = min(self._when, when)

        def close(self) -> None:
            self._closed = True

        def _look(self) -> None:
            """In every iteration of the loop: advance the clock if no connection is active."""
            if self._closed or self._engine._done.done():
                return
            self._loop.call_soon(self._look)
            if not clock.settled(self._engine):
                return
            clock.asleep.sort(key=lambda sleeper: sleeper[0])
            if clock.asleep and clock.asleep[0][0] <= self._when:
                clock.now, awake = clock.asleep.pop(0)
                awake.set_result(None)
            elif self._when < inf:
                # Add a nanosecond: rounded, the time could be before the one that is due.
                clock.now, self._when = max(clock.now, self._when) + 1e-9, inf
                self._callback()

    monkeypatch.setattr(engine, "monotonic", lambda: clock.now)
    monkeypatch.setattr(engine, "PreciseTimer", FakeTimer)
    return clock

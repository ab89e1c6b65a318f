from __future__ import annotations

import asyncio
import sys
import time

import pytest

from greeter.loadtest.generator import timer
from greeter.loadtest.generator.timer import PreciseTimer

pytestmark = pytest.mark.usefixtures("no_fd_leak")


class Bell:
    """An alarm that notes when it rang."""

    def __init__(self) -> None:
        self.rang: list[float] = []
        self._heard = asyncio.Event()
        self.alarm = PreciseTimer(asyncio.get_running_loop(), self._on_fire)

    def _on_fire(self) -> None:
        self.rang.append(time.monotonic())
        self._heard.set()

    async def wait(self) -> float:
        async with asyncio.timeout(10):
            await self._heard.wait()
        self._heard.clear()
        return self.rang[-1]


@pytest.fixture(params=["timerfd", "loop"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "loop":
        monkeypatch.setattr(timer, "_timerfd", lambda: None)


@pytest.mark.usefixtures("kind")
async def test_it_rings_once_and_not_early() -> None:
    bell = Bell()
    when = time.monotonic() + 0.03
    bell.alarm.set(when)
    rang = await bell.wait()
    assert rang >= when - (0.001 if bell.alarm._fd is None else 1e-6)
    await asyncio.sleep(0.02)
    assert len(bell.rang) == 1
    bell.alarm.close()


@pytest.mark.usefixtures("kind")
async def test_the_past_is_at_once() -> None:
    bell = Bell()
    bell.alarm.set(time.monotonic() - 5)
    await bell.wait()
    bell.alarm.set(0.0)
    await bell.wait()
    bell.alarm.close()


@pytest.mark.usefixtures("kind")
async def test_an_earlier_moment_replaces_a_later_one_and_not_the_other_way_round() -> None:
    bell = Bell()
    now = time.monotonic()
    bell.alarm.set(now + 60)
    bell.alarm.set(now + 0.02)
    bell.alarm.set(now + 30)
    assert await bell.wait() < now + 5
    bell.alarm.set(now + 0.03)
    await bell.wait()
    assert len(bell.rang) == 2
    bell.alarm.close()


@pytest.mark.usefixtures("kind")
async def test_closed_it_rings_no_more() -> None:
    bell = Bell()
    bell.alarm.set(time.monotonic() + 0.01)
    bell.alarm.close()
    await asyncio.sleep(0.03)
    assert bell.rang == []


@pytest.mark.skipif(sys.platform != "linux", reason="timerfd is Linux's")
async def test_on_linux_it_is_a_timerfd() -> None:
    bell = Bell()
    assert bell.alarm._fd is not None
    bell.alarm.close()

from __future__ import annotations

import asyncio
import sys
import time

import pytest

from greeter.loadtest.generator import timer
from greeter.loadtest.generator.timer import PreciseTimer

pytestmark = pytest.mark.usefixtures("no_fd_leak")


class Recorder:
    """A timer, and the times of its callbacks."""

    def __init__(self) -> None:
        self.calls: list[float] = []
        self._called = asyncio.Event()
        self.timer = PreciseTimer(asyncio.get_running_loop(), self._on_fire)

    def _on_fire(self) -> None:
        self.calls.append(time.monotonic())
        self._called.set()

    async def wait(self) -> float:
        """Wait for the next callback. Returns its time."""
        async with asyncio.timeout(10):
            await self._called.wait()
        self._called.clear()
        return self.calls[-1]


@pytest.fixture(params=["timerfd", "loop"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "loop":
        monkeypatch.setattr(timer, "_timerfd", lambda: None)


@pytest.mark.usefixtures("kind")
async def test_it_calls_back_once_and_not_early() -> None:
    recorder = Recorder()
    when = time.monotonic() + 0.03
    recorder.timer.set(when)
    called = await recorder.wait()
    # uvloop rounds the delay to a millisecond, and the clock of libuv may be 2 ms behind.
    assert called >= when - (0.003 if recorder.timer._fd is None else 1e-6)
    await asyncio.sleep(0.02)
    assert len(recorder.calls) == 1
    recorder.timer.close()


@pytest.mark.usefixtures("kind")
async def test_a_time_in_the_past_calls_back_at_once() -> None:
    recorder = Recorder()
    recorder.timer.set(time.monotonic() - 5)
    await recorder.wait()
    recorder.timer.set(0.0)
    await recorder.wait()
    recorder.timer.close()


@pytest.mark.usefixtures("kind")
async def test_an_earlier_time_replaces_a_later_one_and_not_the_reverse() -> None:
    recorder = Recorder()
    now = time.monotonic()
    recorder.timer.set(now + 60)
    recorder.timer.set(now + 0.02)
    recorder.timer.set(now + 30)
    assert await recorder.wait() < now + 5
    recorder.timer.set(now + 0.03)
    await recorder.wait()
    assert len(recorder.calls) == 2
    recorder.timer.close()


@pytest.mark.usefixtures("kind")
async def test_a_closed_timer_does_not_call_back() -> None:
    recorder = Recorder()
    recorder.timer.set(time.monotonic() + 0.01)
    recorder.timer.close()
    await asyncio.sleep(0.03)
    assert recorder.calls == []


@pytest.mark.skipif(sys.platform != "linux", reason="timerfd exists on Linux only")
async def test_on_linux_it_is_a_timerfd() -> None:
    recorder = Recorder()
    assert recorder.timer._fd is not None
    recorder.timer.close()

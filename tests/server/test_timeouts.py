"""Items with a common time-out, in virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from greeter.server.timeouts import PAUSE_SECONDS, TIMER_SLACK, Deadline, TimeoutQueue, timeout_without_pauses
from tests.server.test_lingering import VirtualLoop
from tests.support.peers import stand_still

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 2.0


class Timeouts:
    """A queue of texts with a time-out of 2 s, its clock, and the items that have expired."""

    def __init__(self, *, lazy: bool = False) -> None:
        self.loop = VirtualLoop()
        self.expired: list[str] = []
        loop: Any = self.loop
        self.queue: TimeoutQueue[str] = TimeoutQueue(loop, SECONDS, self._on_expired, lazy=lazy)
        self.on_expired: Callable[[str], object] = lambda _: None

    def _on_expired(self, item: str) -> None:
        assert self.queue.discard(item)
        self.expired.append(item)
        self.on_expired(item)


@pytest.fixture
def timeouts() -> Timeouts:
    return Timeouts()


@pytest.fixture
def lazy() -> Timeouts:
    return Timeouts(lazy=True)


def test_a_thousand_items_have_one_timer(timeouts: Timeouts) -> None:
    queue, loop = timeouts.queue, timeouts.loop
    assert loop.timers == []
    items = [str(number) for number in range(1000)]
    for item in items:
        queue.start(item)
        loop.now += 0.001
        assert len(loop.timers) == 1
    for item in items[:-1]:
        assert queue.discard(item)
    assert len(loop.timers) == 1
    assert queue.discard(items[-1])
    assert loop.timers == []  # an empty queue makes no wake-ups
    assert not queue.discard(items[-1])
    loop.advance(10)
    assert (timeouts.expired, loop.fired) == ([], [])


def test_each_item_has_its_own_deadline(timeouts: Timeouts) -> None:
    queue, loop = timeouts.queue, timeouts.loop
    for item in "abc":
        queue.start(item)
        loop.now += 0.5
    queue.discard("b")
    loop.advance(0.499)
    assert timeouts.expired == []
    loop.advance(0.001)
    assert timeouts.expired == ["a"]
    loop.advance(0.999)
    assert (timeouts.expired, list(queue)) == (["a"], ["c"])
    loop.advance(0.001)
    assert (timeouts.expired, list(queue), loop.timers) == (["a", "c"], [], [])


def test_deadlines_within_the_slack_are_one_wake_up(timeouts: Timeouts) -> None:
    for item in "abc":
        timeouts.queue.start(item)
        timeouts.loop.now += 0.45 * TIMER_SLACK
    timeouts.loop.advance(10)
    assert timeouts.expired == ["a", "b", "c"]
    assert len(timeouts.loop.fired) == 1


def test_an_item_that_expired_can_be_started_again(timeouts: Timeouts) -> None:
    timeouts.on_expired = timeouts.queue.start
    timeouts.queue.start("a")
    timeouts.loop.advance(6.1)
    assert timeouts.expired == ["a", "a", "a"]
    assert len(timeouts.loop.timers) == 1


def test_an_item_that_is_removed_on_behalf_of_another_does_not_expire(timeouts: Timeouts) -> None:
    timeouts.queue.start("a")
    timeouts.queue.start("b")
    timeouts.on_expired = lambda _: timeouts.queue.discard("b")
    timeouts.loop.advance(SECONDS)
    assert (timeouts.expired, len(timeouts.queue), timeouts.loop.timers) == (["a"], 0, [])


def test_waited_removes_the_item_and_returns_its_time(timeouts: Timeouts) -> None:
    queue, loop = timeouts.queue, timeouts.loop
    queue.start("a")
    queue.start("b", loop.now + 0.25)
    loop.advance(0.5)
    assert queue.waited("a", loop.now) == 0.5
    assert queue.waited("a", loop.now) == 0.0  # it is not there any more
    assert list(queue) == ["b"]
    assert len(loop.timers) == 1
    assert queue.waited("b", loop.now) == 0.25
    assert loop.timers == []


def test_waited_is_not_negative_after_a_deadline_was_moved(timeouts: Timeouts) -> None:
    timeouts.queue.start("a")
    timeouts.loop.advance(1.5)
    timeouts.queue.start("b")
    timeouts.loop.pause(10)
    timeouts.loop.turn()
    assert list(timeouts.queue) == ["a", "b"]
    assert timeouts.queue.waited("b", timeouts.loop.now) == 0.5  # 10 s, less those of the pause
    assert timeouts.queue.waited("a", timeouts.loop.now - 5) == 0.0


# -- lazy queues


def test_a_lazy_queue_sets_no_timer_until_it_is_told_to(lazy: Timeouts) -> None:
    lazy.queue.set_timer()
    lazy.queue.start("a")
    assert lazy.loop.timers == []
    lazy.loop.advance(0.5)
    lazy.queue.start("b")
    assert lazy.loop.timers == []
    lazy.queue.set_timer()
    lazy.queue.set_timer()
    assert lazy.loop.timers == [lazy.loop.now + SECONDS - 0.5]
    lazy.loop.advance(SECONDS - 0.5)
    assert lazy.expired == ["a"]
    assert lazy.loop.timers == [lazy.loop.now + 0.5]  # once it is set, it stays with the queue
    lazy.loop.advance(0.5)
    assert (lazy.expired, lazy.loop.timers) == (["a", "b"], [])


def test_a_lazy_queue_that_was_empty_waits_to_be_told_again(lazy: Timeouts) -> None:
    lazy.queue.start("a")
    lazy.queue.set_timer()
    lazy.queue.discard("a")
    assert lazy.loop.timers == []
    lazy.queue.start("b")
    lazy.loop.advance(10)
    assert (lazy.expired, lazy.loop.fired) == ([], [])
    lazy.queue.set_timer()  # its deadline has passed
    lazy.loop.turn()
    assert lazy.expired == ["b"]


# -- pauses of the process


def test_a_late_timer_moves_passed_deadlines_and_enforces_none(timeouts: Timeouts) -> None:
    queue, loop, start = timeouts.queue, timeouts.loop, timeouts.loop.now
    for item in "abc":
        queue.start(item)
        loop.advance(0.5)
    loop.pause(1.2)  # the deadline of a has passed 0.7 s ago, that of b 0.2 s ago, that of c is 0.3 s away
    late = loop.now - start - SECONDS
    loop.turn()
    assert timeouts.expired == []
    assert queue.due(start + SECONDS + late - 0.001) == []
    loop.turn()
    assert timeouts.expired == []
    loop.advance(0.299)
    assert timeouts.expired == []
    loop.advance(0.001)
    assert timeouts.expired == ["c"]
    loop.advance(PAUSE_SECONDS - 0.301)
    assert timeouts.expired == ["c"]  # a would be due now, and has a moment to answer
    loop.advance(start + SECONDS + 0.5 + late - loop.now + 0.01)
    assert (timeouts.expired[0], set(timeouts.expired), loop.timers) == ("c", {"a", "b", "c"}, [])


def test_a_timer_of_a_busy_event_loop_is_enforced(timeouts: Timeouts) -> None:
    timeouts.queue.start("a")
    timeouts.queue.start("b")
    timeouts.loop.pause(SECONDS + 0.9 * PAUSE_SECONDS)
    timeouts.loop.turn()
    assert timeouts.expired == ["a", "b"]


def test_a_second_pause_moves_no_deadline_again(timeouts: Timeouts) -> None:
    queue, loop = timeouts.queue, timeouts.loop
    queue.start("a")
    loop.advance(1)
    queue.start("b")
    loop.pause(2)  # both deadlines have passed
    loop.turn()
    loop.turn()
    assert (timeouts.expired, list(queue)) == ([], ["a", "b"])
    loop.pause(10)
    loop.turn()
    assert timeouts.expired == []  # enforced by the next timer, after the event loop could read
    loop.turn()
    assert (timeouts.expired, loop.timers) == (["a", "b"], [])
    assert len(loop.fired) == 3


def test_an_item_that_is_started_again_can_be_moved_again(timeouts: Timeouts) -> None:
    queue, loop = timeouts.queue, timeouts.loop
    for _ in range(2):
        queue.start("a")
        loop.now += 1
        queue.start("b")
        loop.pause(2)
        loop.turn()
        loop.advance(PAUSE_SECONDS)
        assert (timeouts.expired, list(queue)) == (["a"], ["b"])
        loop.advance(1)
        assert (timeouts.expired, list(queue)) == (["a", "b"], [])
        timeouts.expired.clear()


def test_a_pause_before_the_timer_of_a_lazy_queue_is_told_by_another(lazy: Timeouts) -> None:
    lazy.queue.start("a")
    lazy.loop.pause(3)
    assert not lazy.queue.allow_for_pause(lazy.loop.now, PAUSE_SECONDS)
    assert lazy.queue.due(lazy.loop.now) == ["a"]
    assert lazy.queue.allow_for_pause(lazy.loop.now, 2.9)
    assert lazy.queue.due(lazy.loop.now) == []
    lazy.queue.set_timer()
    lazy.loop.advance(1.89)
    assert lazy.expired == []
    lazy.loop.advance(0.02)
    assert lazy.expired == ["a"]


def test_no_deadline_is_moved_beyond_that_of_an_item_that_starts_now(timeouts: Timeouts) -> None:
    """Items that start while the event loop is held up can be due by the time that the timer rings."""
    queue, loop = timeouts.queue, timeouts.loop
    queue.start("a")
    loop.now += 5
    queue.start("b")
    loop.pause(3)
    loop.turn()  # 6 s late
    queue.start("c")
    loop.turn()
    assert list(queue)[-1] == "c"
    loop.advance(SECONDS)
    assert timeouts.expired[-1] == "c"
    assert set(timeouts.expired) == {"a", "b", "c"}


# -- single deadlines


def deadline(seconds: float, **options: float) -> tuple[VirtualLoop, Deadline, list[float]]:
    """A deadline in virtual time, and when it has expired."""
    loop = VirtualLoop()
    expired: list[float] = []
    anything: Any = loop
    return loop, Deadline(anything, seconds, lambda: expired.append(loop.now), **options), expired


def test_a_single_deadline_is_enforced_on_time_and_by_a_busy_event_loop() -> None:
    loop, _, expired = deadline(SECONDS)
    loop.advance(SECONDS - 0.001)
    assert expired == []
    loop.pause(0.9 * PAUSE_SECONDS)
    loop.turn()
    assert len(expired) == 1
    assert loop.timers == []


@pytest.mark.parametrize(
    ("seconds", "options", "grace"),
    [(SECONDS, {}, PAUSE_SECONDS), (0.2, {}, 0.2), (SECONDS, {"grace": 1.5}, 1.5)],
)
def test_a_pause_moves_a_single_deadline_once(
    seconds: float, options: dict[str, float], grace: float
) -> None:
    loop, _, expired = deadline(seconds, **options)
    loop.pause(seconds + 10)
    loop.advance(grace - 0.001)
    assert expired == []
    loop.pause(10)
    loop.turn()
    assert len(expired) == 1
    assert loop.timers == []


@pytest.mark.parametrize("pause", [0.0, 10.0])
def test_a_cancelled_deadline_does_not_expire(pause: float) -> None:
    loop, single, expired = deadline(SECONDS)
    loop.pause(pause)
    loop.turn()
    single.cancel()
    single.cancel()
    loop.advance(20)
    assert (expired, loop.timers) == ([], [])


async def test_a_timeout_without_pauses_expires_and_lets_a_pause_pass() -> None:
    with pytest.raises(TimeoutError):
        async with timeout_without_pauses(0.01):
            await asyncio.Event().wait()
    ready = asyncio.Event()
    async with timeout_without_pauses(0.3) as timeout:
        asyncio.get_running_loop().call_later(0.3, ready.set)
        stand_still(0.3 + 1.2 * PAUSE_SECONDS)
        await ready.wait()
    assert not timeout.expired()

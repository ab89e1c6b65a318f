"""The shortest schedule that still fails.

Invariants:

- Every candidate is simpler than what it is made from: ``weight`` decreases. So shrinking ends.
- The last event, which is the stop, stays.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from tests.torture.schedule import Event, Schedule, ServiceSpec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator


def weight(schedule: Schedule) -> tuple[int, int, int]:
    """Return how long a schedule is: its events, their numbers, and its options that are not the default."""
    default = asdict(ServiceSpec())
    options = asdict(schedule.service)
    numbers = sum(event.after + event.ms + (event.count > 1) + event.count for event in schedule.events)
    return len(schedule.events), numbers, sum(options[name] != default[name] for name in default)


def candidates(schedule: Schedule) -> Iterator[Schedule]:
    """Yield simpler schedules, those that leave out most first."""
    last = len(schedule.events)  # the number of the stop
    size = last - 1
    while size > 0:
        for first in range(1, last, size):
            yield schedule.without(frozenset(range(first, min(first + size, last))))
        size //= 2
    for name, value in asdict(ServiceSpec()).items():
        if getattr(schedule.service, name) != value:
            yield replace(schedule, service=replace(schedule.service, **{name: value}))
    for number, event in enumerate(schedule.events):
        for simpler in _simpler(event):
            events = (*schedule.events[:number], simpler, *schedule.events[number + 1 :])
            yield replace(schedule, events=events)


def _simpler(event: Event) -> Iterator[Event]:
    if event.count > 1:
        yield replace(event, count=1)
        if event.count > 3:
            yield replace(event, count=event.count // 2)
    if event.after:
        yield replace(event, after=0)


async def shrink(
    schedule: Schedule, fails: Callable[[Schedule], Awaitable[bool]], seconds: float, jobs: int = 1
) -> Schedule:
    """Return the simplest schedule found that still fails.

    Args:
        schedule: One that fails.
        fails: Plays a schedule, and returns whether it fails.
        seconds: When to stop looking. What is played then is played to its end.
        jobs: How many are played side by side.
    """
    end = time.monotonic() + seconds
    left = candidates(schedule)
    while time.monotonic() < end and (some := list(itertools.islice(left, jobs))):
        failures = await asyncio.gather(*map(fails, some))
        if any(failures):
            schedule = some[failures.index(True)]
            left = candidates(schedule)
    return schedule

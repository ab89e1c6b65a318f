"""Schedules: when the next connection is due, as a pure function of time and of connections started.

``pace(elapsed, started) -> (wait, stop)`` is the interface. In a closed loop, the next connection is due
as soon as a slot is free. In an open loop, arrival ``k`` (from 0) is due when the integral of the rate
reaches ``k``, whatever the server does.

Invariants:

- ``now + wait`` is the intended start of the next connection, however late the caller asks.
- Within a stage the rate is linear, so its integral is a quadratic. It is solved in closed form, not
  stepped through: errors do not accumulate.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, sqrt
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable


# In seconds. An arrival that waits for a slot is not started later than this after the end of the schedule.
# One for which there is a slot has more time, so that a hiccup of the machine does not cut a schedule short.
LATE_TOLERANCE = 0.01
_OVERTIME = 0.1


class Pacer(Protocol):
    """A schedule of connections. All times are in seconds from its beginning."""

    @property
    def total(self) -> int | None:
        """The number of connections; None if the schedule does not limit it."""

    @property
    def length(self) -> float | None:
        """The duration of the schedule; None if it is not limited."""

    @property
    def end(self) -> float | None:
        """The time after which no connection is started; None if there is none."""

    def due(self, elapsed: float) -> int:
        """Return how many connections were due by ``elapsed`` seconds; 0 in a closed loop."""

    def pace(self, elapsed: float, started: int) -> tuple[float, bool]:
        """Say when the next connection is due.

        Args:
            elapsed: seconds since the beginning of the schedule; negative before it.
            started: connections started so far.

        Returns:
            ``(wait, stop)``: the seconds until the next connection is due, negative if it is overdue; and
            True if no further connection will be due.
        """


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """Start a connection whenever a slot is free, ``total`` times or for ``length`` seconds."""

    total: int | None = None
    length: float | None = None

    @property
    def end(self) -> float | None:
        return self.length

    def due(self, elapsed: float) -> int:
        return 0

    def pace(self, elapsed: float, started: int) -> tuple[float, bool]:
        if started == self.total or (self.length is not None and elapsed >= self.length):
            return 0.0, True
        return 0.0 if elapsed >= 0 else -elapsed, False


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a schedule in which the rate changes linearly to ``rate``.

    A stage with the rate of the stage before it holds that rate. A stage of 0 seconds changes it at once.

    Args:
        duration: in seconds, 0 or more.
        rate: arrivals per second at the end of the stage, 0 or more.
    """

    duration: float
    rate: float


class OpenLoop:
    """Arrivals on a fixed schedule.

    Worker ``index`` of ``workers`` takes the arrivals ``index``, ``index + workers``, …: together, the
    workers take each arrival once. ``mean`` is the average rate of all workers, in arrivals per second.

    Args:
        stages: carried out one after the other.
        rate: the rate at the beginning of the first stage, in arrivals per second.
        limit: ends the schedule after this many arrivals of all workers.
        index: the number of this worker, from 0.
        workers: how many workers share the schedule.
    """

    def __init__(
        self,
        stages: Iterable[Stage],
        rate: float = 0.0,
        *,
        limit: int | None = None,
        index: int = 0,
        workers: int = 1,
    ) -> None:
        self._index, self._workers = index, workers
        # Of each stage with arrivals: when it begins, in seconds; the arrivals before it; and its ramp: the
        # rate at its beginning, and the change of the rate per second.
        self._stage_begins: list[float] = []
        self._arrivals_before: list[float] = []
        self._ramps: list[tuple[float, float]] = []
        begin, arrivals, first = Fraction(0), Fraction(0), _exact(rate)
        for stage in stages:
            duration, last = _exact(stage.duration), _exact(stage.rate)
            during = (first + last) / 2 * duration
            if during:
                self._stage_begins.append(float(begin))
                self._arrivals_before.append(float(arrivals))
                self._ramps.append((float(first), float((last - first) / duration)))
            begin, arrivals, first = begin + duration, arrivals + during, last
        # Arrival k belongs to the schedule if it is due before the end: k < arrivals. Computed in fractions,
        # because 1.1/s over 10 s is 11 arrivals, and ceil(11.000000000000002) would be 12.
        total = ceil(arrivals)
        self.length = float(begin)
        self.mean = float(arrivals / begin) if begin else 0.0
        if limit is not None and limit < total:
            total = limit
            self.length = self._due_at(limit)
            self.mean = limit / self.length
        self.end = self.length + _OVERTIME
        self.total = max(0, -((index - total) // workers))

    def arrival(self, k: int) -> float:
        """Return when arrival ``k`` (from 0) of this worker is due, in seconds from the beginning."""
        return self._due_at(self._index + k * self._workers)

    def due(self, elapsed: float) -> int:
        return bisect_right(range(self.total), elapsed, key=self.arrival)

    def pace(self, elapsed: float, started: int) -> tuple[float, bool]:
        if started >= self.total or elapsed >= self.end:
            return 0.0, True
        return self.arrival(started) - elapsed, False

    def _due_at(self, k: int) -> float:
        stage = bisect_right(self._arrivals_before, k) - 1
        first, change = self._ramps[stage]
        missing = k - self._arrivals_before[stage]
        if not missing:
            return self._stage_begins[stage]
        # Solve missing = first * t + change / 2 * t**2 for t, in the form that also works for change = 0 and
        # does not cancel. The radicand is below zero only by rounding, at the foot of a ramp.
        root = sqrt(max(0.0, first * first + 2 * change * missing))
        return self._stage_begins[stage] + 2 * missing / (first + root)


def _exact(value: float) -> Fraction:
    return Fraction(repr(float(value)))

"""When the next connection is to begin: a pure function of the time and of how many have begun.

The law: ``pace(elapsed, started) -> (wait, stop)``. ``elapsed`` is seconds since the beginning,
``started`` how many connections have begun; ``wait`` is the seconds until the next is due, negative when
it is overdue, so that ``now + wait`` is the very moment at which it was meant to begin, however late the
caller asks. ``stop`` ends the run: no more will ever be due.

In a closed loop the next one is due as soon as there is a place for it. In an open loop arrival number
``k`` (from 0) has its place in time whatever the server does: the moment at which the rate, summed up
since the beginning, reaches ``k``. Along a stage, in which the rate goes in a straight line from one value
to another, that sum is a parabola, which is solved and not stepped through: no error adds up.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, sqrt
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable


# An arrival that is this late is late, and one that is later still when the schedule ends has not begun.
LATE_TOLERANCE = 0.01


class Pacer(Protocol):
    """``total`` is how many arrivals there will be, ``length`` how long they take in seconds, if known;
    ``end`` is when the last chance to begin is over."""

    @property
    def total(self) -> int | None: ...

    @property
    def length(self) -> float | None: ...

    @property
    def end(self) -> float | None: ...

    def pace(self, elapsed: float, started: int) -> tuple[float, bool]: ...


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """As fast as places come free, until ``total`` have begun or ``length`` seconds have passed."""

    total: int | None = None
    length: float | None = None

    @property
    def end(self) -> float | None:
        return self.length

    def pace(self, elapsed: float, started: int) -> tuple[float, bool]:
        if started == self.total or (self.length is not None and elapsed >= self.length):
            return 0.0, True
        return 0.0 if elapsed >= 0 else -elapsed, False


@dataclass(frozen=True, slots=True)
class Stage:
    """``duration`` seconds in which the rate goes in a straight line to ``rate`` arrivals per second.

    A stage of no duration is a jump; one at the rate of the stage before holds it.
    """

    duration: float
    rate: float


class OpenLoop:
    """Arrivals on a schedule: ``stages`` one after the other, from ``rate`` arrivals per second.

    ``limit`` ends the schedule after so many arrivals. Worker ``index`` of ``workers`` takes every
    ``workers``-th arrival of the schedule, beginning with its own: the parts are the whole, exactly.
    ``mean`` is the rate of the whole on average.
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
        self._begins: list[float] = []  # of each stage with arrivals: its time in seconds …
        self._before: list[float] = []  # … the arrivals before it …
        self._shapes: list[tuple[float, float]] = []  # … and its first rate, and how that changes per second
        begin, arrivals, first = Fraction(0), Fraction(0), _exact(rate)
        for stage in stages:
            duration, last = _exact(stage.duration), _exact(stage.rate)
            during = (first + last) / 2 * duration
            if during:
                self._begins.append(float(begin))
                self._before.append(float(arrivals))
                self._shapes.append((float(first), float((last - first) / duration)))
            begin, arrivals, first = begin + duration, arrivals + during, last
        # Arrival k is part of the schedule if its sum is reached before the end: k < arrivals. Fractions,
        # because 1.1/s over 10 s is 11 arrivals, and 11.000000000000002 would be 12.
        self._all = ceil(arrivals)
        self.length = float(begin)
        self.mean = float(arrivals / begin) if begin else 0.0
        if limit is not None and limit < self._all:
            self._all = limit
            self.length = self._moment(limit)
            self.mean = limit / self.length
        self.end = self.length + LATE_TOLERANCE
        self.total = max(0, -((index - self._all) // workers))

    def arrival(self, k: int) -> float:
        """The moment of this worker's arrival number ``k``, in seconds from the beginning."""
        return self._moment(self._index + k * self._workers)

    def pace(self, elapsed: float, started: int) -> tuple[float, bool]:
        if started >= self.total or elapsed >= self.end:
            return 0.0, True
        return self.arrival(started) - elapsed, False

    def _moment(self, k: int) -> float:
        stage = bisect_right(self._before, k) - 1
        first, change = self._shapes[stage]
        missing = k - self._before[stage]
        if not missing:
            return self._begins[stage]
        # missing = first * t + change / 2 * t**2, solved for t in the form that also serves change = 0
        # and does not cancel. The root is of nothing below zero, but for rounding at the foot of a ramp.
        root = sqrt(max(0.0, first * first + 2 * change * missing))
        return self._begins[stage] + 2 * missing / (first + root)


def _exact(value: float) -> Fraction:
    return Fraction(repr(float(value)))

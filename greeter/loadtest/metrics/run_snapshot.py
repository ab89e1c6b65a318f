"""The figures of a run in progress: the sum of the intervals of its workers so far.

Invariants:

- The engine only hands over each interval. Adding up happens here, percentiles are computed on request.
- The memory of a snapshot does not grow with the duration of the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from greeter.loadtest.metrics.histogram import Histogram

if TYPE_CHECKING:
    from greeter.loadtest.metrics.timeline import Interval

# Of how many seconds the intervals are kept.
_KEPT_SECONDS = 60.0


class Snapshot:
    """The figures of a run so far.

    - ``elapsed``: seconds since the beginning of the run.
    - ``attempted``, ``greeted``, ``failed``: connections started, greeted and failed.
    - ``response``: the histogram of response times, from the intended start.
    """

    def __init__(self) -> None:
        self.elapsed = 0.0
        self.attempted = self.greeted = self.failed = 0
        self.response = Histogram()
        self._open: dict[int, int] = {}
        self._attempts: dict[float, int] = {}
        self._responses: dict[float, Histogram] = {}
        self._span = 1.0  # of an interval

    def add(self, interval: Interval, worker: int = 0) -> None:
        """Add an interval that has ended.

        Args:
            interval: of one worker; all have the same length.
            worker: the number of that worker, from 0.
        """
        self._span = interval.span
        self.elapsed = max(self.elapsed, interval.begin + interval.span)
        self.attempted += interval.attempted
        self.greeted += interval.greeted
        self.failed += interval.failed
        self.response.add(interval.response)
        self._open[worker] = interval.open
        self._attempts[interval.begin] = self._attempts.get(interval.begin, 0) + interval.attempted
        self._responses.setdefault(interval.begin, Histogram(sparse=True)).add(interval.response)
        while len(self._attempts) * interval.span > _KEPT_SECONDS + interval.span / 2:
            begin = min(self._attempts)
            del self._attempts[begin], self._responses[begin]

    @property
    def open(self) -> int:
        """The maximum of open connections in the last interval, of all workers."""
        return sum(self._open.values())

    @property
    def rate(self) -> float:
        """Connections started per second, over the last second."""
        since = self.elapsed - 1 - self._span / 2
        last = [count for begin, count in self._attempts.items() if begin > since]
        return sum(last) / (len(last) * self._span) if last else 0.0

    def p99s_us(self, count: int) -> list[float | None]:
        """Return the p99 of the response times of each of the last intervals, at most a minute of them.

        Args:
            count: the number of intervals.

        Returns:
            Microseconds; None for an interval without a response.
        """
        last = sorted(self._responses.items())[-count:]
        return [histogram.percentiles(99)[0] for _, histogram in last]

    def percentile_us(self, percent: float) -> float | None:
        """Return a percentile of the response times so far.

        Args:
            percent: from 0 to 100.

        Returns:
            Microseconds; None if there was no response yet.
        """
        return self.response.percentiles(percent)[0]

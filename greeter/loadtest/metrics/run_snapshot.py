"""How a run is going: what its workers' intervals add up to so far.

The law: whoever looks at a run works for it himself. The engine hands over each quarter of a second as it
is; adding up, percentiles and drawing are done by the one who looks, when he looks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from greeter.loadtest.metrics.histogram import Histogram
from greeter.loadtest.metrics.timeline import INTERVAL

if TYPE_CHECKING:
    from greeter.loadtest.metrics.timeline import Interval

# A minute of intervals, for a picture of the rate.
_MAX_INTERVALS = int(60 / INTERVAL)


class Snapshot:
    """The figures so far. ``elapsed`` is in seconds; ``open`` is what was open lately, at the most."""

    def __init__(self) -> None:
        self.elapsed = 0.0
        self.attempted = self.greeted = self.failed = 0
        self.response = Histogram()
        self._open: dict[int, int] = {}
        self._attempts: dict[float, int] = {}

    def add(self, interval: Interval, worker: int = 0) -> None:
        """Take in an interval that has ended."""
        self.elapsed = max(self.elapsed, interval.begin + INTERVAL)
        self.attempted += interval.attempted
        self.greeted += interval.greeted
        self.failed += interval.failed
        self.response.add(interval.response)
        self._open[worker] = interval.open
        self._attempts[interval.begin] = self._attempts.get(interval.begin, 0) + interval.attempted
        while len(self._attempts) > _MAX_INTERVALS:
            del self._attempts[min(self._attempts)]

    @property
    def open(self) -> int:
        return sum(self._open.values())

    @property
    def rate(self) -> float:
        """Connections begun per second, over the last second."""
        since = self.elapsed - 1 - INTERVAL / 2
        last = [count for begin, count in self._attempts.items() if begin > since]
        return sum(last) / (len(last) * INTERVAL) if last else 0.0

    @property
    def rates(self) -> list[float]:
        """Connections begun per second, in each quarter of a second of the last minute."""
        return [count / INTERVAL for _, count in sorted(self._attempts.items())]

    def percentile_us(self, percent: float) -> float | None:
        """A percentile of the response times so far, in µs."""
        return self.response.percentiles(percent)[0]

"""How a run is going: what its workers' intervals add up to so far.

The law: whoever looks at a run works for it himself. The engine hands over each quarter of a second as it
is; adding up, percentiles and drawing are done by the one who looks, when he looks.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from greeter.loadtest.histogram import Histogram
from greeter.loadtest.timeline import INTERVAL

if TYPE_CHECKING:
    from greeter.loadtest.timeline import Interval

# A minute of intervals, for a picture of the rate.
_KEPT = int(60 / INTERVAL)


class Snapshot:
    """The figures so far. ``elapsed`` is in seconds; ``open`` is what was open lately, at the most."""

    def __init__(self) -> None:
        self.elapsed = 0.0
        self.attempted = self.greeted = self.failed = 0
        self.response = Histogram()
        self._open: dict[int, int] = {}
        self._attempts: deque[tuple[float, int]] = deque(maxlen=_KEPT)

    def add(self, interval: Interval, worker: int = 0) -> None:
        """Take in an interval that has ended."""
        self.elapsed = max(self.elapsed, interval.begin + INTERVAL)
        self.attempted += interval.attempted
        self.greeted += interval.greeted
        self.failed += interval.failed
        self.response.add(interval.response)
        self._open[worker] = interval.open
        for place, (begin, count) in enumerate(self._attempts):
            if begin == interval.begin:  # another worker's, of the same time
                self._attempts[place] = (begin, count + interval.attempted)
                return
        self._attempts.append((interval.begin, interval.attempted))

    @property
    def open(self) -> int:
        return sum(self._open.values())

    @property
    def rate(self) -> float:
        """Connections begun per second, over the last second."""
        last = [count for begin, count in self._attempts if begin > self.elapsed - 1 - INTERVAL / 2]
        return sum(last) / (len(last) * INTERVAL) if last else 0.0

    @property
    def rates(self) -> list[float]:
        """Connections begun per second, in each quarter of a second of the last minute."""
        return [count / INTERVAL for _, count in sorted(self._attempts)]

    def percentile_us(self, percent: float) -> float | None:
        """A percentile of the response times so far, in µs."""
        return self.response.percentiles(percent)[0]

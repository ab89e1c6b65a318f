"""The slots of a closed loop whose connections were refused: each rests before it is used again.

A target that is down refuses within microseconds. Without a rest, a closed loop would try at full speed.

Invariants:

- A slot rests 1, 2, 4, … 100 ms, one step longer each time it is refused in a row.
- Slots are alike. How often a slot was refused is handed on to the connection that uses it next.
"""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf

_FIRST_REST, _MAX_REST = 0.001, 0.1  # seconds


class RestingSlots:
    """Slots that rest.

    - ``count``: how many there are.
    - ``rested``: the numbers of refusals of those that may be used again.
    """

    def __init__(self) -> None:
        self.count = 0
        self.rested: list[int] = []
        self._resting: list[tuple[float, int]] = []  # a heap of ends, each with the number of refusals

    def add(self, refusals: int, now: float) -> None:
        """Let a slot rest.

        Args:
            refusals: how often it had been refused in a row, before this time.
            now: the time, in seconds.
        """
        rest = min(_FIRST_REST * 2.0 ** min(refusals, 10), _MAX_REST)
        heappush(self._resting, (now + rest, refusals + 1))
        self.count += 1

    def first(self) -> float:
        """Return when the next slot has rested; infinity without one."""
        return self._resting[0][0] if self._resting else inf

    def wake(self, now: float) -> int:
        """Return how many slots have rested by ``now``, since the last call."""
        while self._resting and self._resting[0][0] <= now:
            self.rested.append(heappop(self._resting)[1])
        before, self.count = self.count, len(self._resting)
        return before - self.count

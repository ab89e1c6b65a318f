"""How long to wait before something that failed is tried again."""

from __future__ import annotations


class Backoff:
    """Exponential backoff: 0.1 s, then twice as long each time, up to 5 s."""

    INITIAL = 0.1
    MAXIMUM = 5.0

    def __init__(self) -> None:
        self._next = self.INITIAL

    def next(self) -> float:
        """Return the next delay, in seconds."""
        delay, self._next = self._next, min(self._next * 2, self.MAXIMUM)
        return delay

    def reset(self) -> None:
        """Start over with the initial delay."""
        self._next = self.INITIAL

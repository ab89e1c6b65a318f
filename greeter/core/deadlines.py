"""Deadlines in order, without a timer per item.

Invariants:

- Within one table, deadlines never decrease from one item to the next. The first item is therefore the next
  one due, and one ``dict`` is both the queue and the set of members, with constant-time look-up.
- A deadline is postponed at most once, so every item expires.
- The caller passes the time in, in seconds on a monotonic clock.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")


class Deadlines(Generic[T]):
    """A queue of items, ordered by deadline. Items must be hashable; each has one deadline."""

    __slots__ = ("_due", "_postponed")

    def __init__(self) -> None:
        self._due: dict[T, float] = {}
        self._postponed: set[T] = set()

    def __len__(self) -> int:
        return len(self._due)

    def __iter__(self) -> Iterator[T]:
        return iter(self._due)

    def __contains__(self, item: object) -> bool:
        return item in self._due

    def add(self, item: T, deadline: float) -> None:
        """Add ``item`` at the end, or move it there.

        Args:
            item: The item.
            deadline: Its deadline in seconds; must not be before the deadline of any other item.
        """
        self._due.pop(item, None)  # assigning to a key that exists would not move it
        if self._postponed:
            self._postponed.discard(item)
        self._due[item] = deadline

    def discard(self, item: T) -> bool:
        """Remove ``item``. Return True if it was in the table."""
        if self._postponed:
            self._postponed.discard(item)
        return self._due.pop(item, None) is not None

    def first(self) -> float | None:
        """Return the next deadline in seconds, or None if the table is empty."""
        return next(iter(self._due.values()), None)

    def due(self, now: float, limit: int | None = None) -> list[T]:
        """Return the items whose deadline is at or before ``now``, in order, without removing them.

        Args:
            now: The current time in seconds.
            limit: How many to return at most. Default: all.
        """
        found = []
        for item, deadline in islice(self._due.items(), limit):
            if deadline > now:
                break
            found.append(item)
        return found

    def expire(self, now: float, limit: int | None = None) -> list[T]:
        """Remove and return the items whose deadline is at or before ``now``, in order. As ``due`` else."""
        found = self.due(now, limit)
        for item in found:
            self.discard(item)
        return found

    def postpone(
        self, now: float, seconds: float, latest: float = math.inf, earliest: float = -math.inf
    ) -> None:
        """Postpone the deadlines at or before ``now``, except those that were postponed already.

        Args:
            now: The current time in seconds.
            seconds: How far to postpone them, in seconds.
            latest: The latest time to postpone them to, in seconds. Items can still be added with this
                deadline.
            earliest: The earliest time to postpone them to, in seconds, not after ``latest``.
        """
        moved = {
            item: max(min(self._due[item] + seconds, latest), earliest)
            for item in self.due(now)
            if item not in self._postponed
        }
        self._postponed |= moved.keys()
        self._due = dict(sorted((self._due | moved).items(), key=lambda entry: entry[1]))

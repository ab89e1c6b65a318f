"""Deadlines in order, without a timer for each.

Invariants:

- The deadlines of one table never decrease in the order of its items. So the first item is the first one
  due, and a ``dict`` serves as the queue, as the table of members, and finds an item in constant time.
- A deadline is postponed once at the most, so that no item can stay for ever.
- Time is a number that the caller passes in, in seconds on any clock that does not go back.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Items with a deadline each. Items must be hashable; an item has at most one deadline."""

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
        """Add ``item``, or move it to the end, with a deadline not before that of any other item."""
        self._due.pop(item, None)  # a dict would keep its old place
        if self._postponed:
            self._postponed.discard(item)
        self._due[item] = deadline

    def discard(self, item: T) -> bool:
        """Remove ``item``. Returns True if it was in the table."""
        if self._postponed:
            self._postponed.discard(item)
        return self._due.pop(item, None) is not None

    def first(self) -> float | None:
        """Returns the next deadline, or None if the table is empty."""
        return next(iter(self._due.values()), None)

    def due(self, now: float) -> list[T]:
        """Returns the items whose deadline is at or before ``now``, in order. They stay in the table."""
        found = []
        for item, deadline in self._due.items():
            if deadline > now:
                break
            found.append(item)
        return found

    def expire(self, now: float) -> list[T]:
        """Remove and return the items whose deadline is at or before ``now``, in order."""
        found = self.due(now)
        for item in found:
            self.discard(item)
        return found

    def postpone(self, now: float, seconds: float, latest: float = math.inf) -> None:
        """Move the deadlines that are at or before ``now``, but no deadline twice.

        Args:
            now: the current time.
            seconds: by how much they are moved.
            latest: no deadline is moved beyond this time, so that items can be added with this deadline.
        """
        moved = {
            item: min(self._due[item] + seconds, latest)
            for item in self.due(now)
            if item not in self._postponed
        }
        self._postponed |= moved.keys()
        self._due = dict(sorted((self._due | moved).items(), key=lambda entry: entry[1]))

"""Deadlines in the order in which they were set, without a timer for each.

The law: all deadlines of one queue are the same time away when they are set, so the first one in is
the first one due. A ``dict`` keeps that order, finds an entry in constant time, and doubles as the
table of who is there. Time is a number that the caller passes in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Things that wait, each until the deadline it was given. They must be hashable and are there once."""

    __slots__ = ("_due",)

    def __init__(self) -> None:
        self._due: dict[T, float] = {}

    def __len__(self) -> int:
        return len(self._due)

    def __iter__(self) -> Iterator[T]:
        return iter(self._due)

    def __contains__(self, item: object) -> bool:
        return item in self._due

    def add(self, item: T, deadline: float) -> None:
        """Wait for ``item`` until ``deadline``, which is not before that of any item added earlier.

        An item that waits already goes to the end with its new deadline.
        """
        self._due.pop(item, None)  # a dict would keep its old place
        self._due[item] = deadline

    def discard(self, item: T) -> bool:
        """Wait no longer; True if the item was there."""
        return self._due.pop(item, None) is not None

    def first(self) -> float | None:
        """The next deadline, or None when nobody waits."""
        return next(iter(self._due.values()), None)

    def expire(self, now: float) -> list[T]:
        """Take out everything that is due at ``now``, first in first."""
        late = []
        for item, deadline in self._due.items():
            if deadline > now:
                break
            late.append(item)
        for item in late:
            del self._due[item]
        return late

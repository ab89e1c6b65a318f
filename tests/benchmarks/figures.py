"""The arithmetic: figures with their spread, ratios round by round, and claims.

Invariants:
- A ratio is of two figures of the same round. The median of the ratios is not the ratio of the medians, and
  only the first of them survives a machine that changes its speed between rounds.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured, once in each round."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def low(self) -> float:
        return min(self.samples)

    @property
    def high(self) -> float:
        return max(self.samples)


def figure(samples: Sequence[float]) -> Figure:
    """The figure of ``samples``, of which there is at least one."""
    if not samples:
        raise ValueError("a figure needs at least one round")
    return Figure(tuple(samples))


def ratio(costs: Figure, base: Figure) -> Figure:
    """``costs`` over ``base``, round by round. Raises ValueError if the rounds are not the same ones."""
    return Figure(tuple(cost / of for cost, of in zip(costs.samples, base.samples, strict=True)))


@dataclass(frozen=True, slots=True)
class Claim:
    """What a row promises: its median ratio, or every value where it has no ratio, is at most ``limit``, or
    at least that much."""

    limit: float
    at_least: bool = False

    def holds(self, found: float) -> bool:
        return found >= self.limit if self.at_least else found <= self.limit


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table.

    ``value`` is in the unit of the table, ``ratio`` is to the table's base, and ``extras`` stand in columns
    of their own.
    """

    name: str
    value: Figure
    ratio: Figure | None = None
    claim: Claim | None = None
    extras: Mapping[str, float] = field(default_factory=dict)

    @property
    def holds(self) -> bool | None:
        """Whether the claim holds; None if there is none."""
        return None if self.claim is None else self.claim.holds(self.judged)

    @property
    def judged(self) -> float:
        """What the claim is about: of the values, the one that is hardest on it."""
        if self.ratio is not None:
            return self.ratio.median
        return self.value.low if self.claim is not None and self.claim.at_least else self.value.high


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of one question. ``base`` is the row that the others are compared with, if any is."""

    name: str
    title: str
    unit: str
    rows: tuple[Row, ...]
    base: str = ""
    digits: int = 1


def compared(
    samples: Mapping[str, Sequence[float]],
    base: str,
    *,
    claims: Mapping[str, float] | None = None,
    extras: Mapping[str, Mapping[str, float]] | None = None,
) -> tuple[Row, ...]:
    """A row for each of ``samples``, in their order, with its ratio to the row ``base``.

    ``claims`` are limits of ratios, by the row's name.
    """
    figures = {name: figure(values) for name, values in samples.items()}
    return tuple(
        Row(
            name,
            value,
            ratio=ratio(value, figures[base]),
            claim=Claim(claims[name]) if claims and name in claims else None,
            extras=extras[name] if extras and name in extras else {},
        )
        for name, value in figures.items()
    )

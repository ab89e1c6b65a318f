"""The rows of a comparison with a baseline, as text and worst first."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

from greeter.loadtest.plan.units import latency, number

if TYPE_CHECKING:
    from collections.abc import Iterable

_SAME_PERCENT = 0.5


def worst_first(figures: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the figures of a comparison: those that are worse first, then by how much they have changed."""

    def key(change: dict[str, Any]) -> tuple[bool, float]:
        percent = change["change_percent"]
        if percent is None:  # nothing before, or nothing now
            return not change["worse"], -inf if change["worse"] else 0
        return not change["worse"], percent if change["unit"] == "/s" else -percent

    return sorted(figures, key=key)


def change_text(change: dict[str, Any]) -> str:
    """Return by how much a figure has changed, as in ``same``, ``-13 %``, ``+71 %`` or ``17×``."""
    old, new = change["old"], change["new"]
    if new is None:
        return "none"
    if old == new:
        return "same"
    return ratio(new / old) if old else "new"


def ratio(factor: float) -> str:
    """Return a ratio as people write it.

    Args:
        factor: the new value divided by the old one.

    Returns:
        ``same`` within 0.5 %, the change in percent up to +100 %, and the factor above.
    """
    percent = round(100 * (factor - 1), 6)
    if abs(percent) <= _SAME_PERCENT:
        return "same"
    if round(percent) <= 100:
        return f"{percent:+.1f} %" if abs(percent) < 9.95 else f"{percent:+.0f} %"
    return f"{factor:.1f}×" if factor < 9.95 else f"{factor:,.0f}×"


def value_text(value: float | None, unit: str) -> str:
    """Return a figure of a comparison with its unit: ``us``, ``/s`` or ``%``."""
    if value is None:
        return "-"
    return latency(value) if unit == "us" else number(value) + unit

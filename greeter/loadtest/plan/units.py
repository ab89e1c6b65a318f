"""Counts and percentages, parsed from text, and what reports format: these, durations and latencies.

Invariants:

- Text carries its multiple (``10k``).
- A formatted latency or duration has three significant digits.
"""

from __future__ import annotations

import re
from math import nan

from greeter.errors import ConfigError

LONGEST_US = 60_000_000  # the longest latency that is measured
MAX_QUANTITY = 10**12  # the largest count or rate of a plan: far above what a run can make

MULTIPLES = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_QUANTITY = re.compile(rf"({_NUMBER})([kKmMgG]?)", re.ASCII)


def parse_quantity(text: str) -> float:
    """Parse a number of 0 or more.

    Args:
        text: as in ``250``, ``10k`` or ``1.5M``.

    Raises:
        ConfigError: ``text`` is not such a number.
    """
    match = _QUANTITY.fullmatch(text.strip())
    if not match:
        negative = re.fullmatch(rf"\s*-{_NUMBER}.*", text)
        kind = "number of 0 or more" if negative else "number"
        raise ConfigError(f"{text!r} is not a {kind}, as in 250, 10k or 1.5M")
    return float(match[1]) * MULTIPLES[match[2].lower()]


def parse_count(text: str) -> int:
    """Parse a whole number from 0 to MAX_QUANTITY.

    Args:
        text: as in ``250``, ``10k`` or ``1.5k``; ``1.5`` is not a whole number.

    Raises:
        ConfigError: ``text`` is not such a number.
    """
    value = parse_quantity(text)
    if value > MAX_QUANTITY:
        raise ConfigError(f"{text[:40]!r} is more than the maximum of {MAX_QUANTITY:,}")
    if value != int(value):
        raise ConfigError(f"{text!r} is not a whole number, as in 250, 10k or 1.5M")
    return int(value)


def parse_percent(text: str) -> float:
    """Parse a percentage of 0 or more.

    Args:
        text: as in ``25`` or ``0.5%``.

    Raises:
        ConfigError: ``text`` is not a percentage.
    """
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = nan
    if not 0 <= value <= 1e6:
        raise ConfigError(f"{text!r} is not a percentage, as in 25 or 25%")
    return value


def latency(us: float | None) -> str:
    """Format a latency in a suitable unit: ``850 µs``, ``3.14 ms``, ``12.1 s``; ``-`` for None.

    A latency over 60 s is measured as 60 s, and reads ``> 60 s``.

    Args:
        us: microseconds.
    """
    if us is None:
        return "-"
    if us >= LONGEST_US:
        return f"> {_three_digits(LONGEST_US / 1e6)} s"
    rounded = float(f"{us:.3g}")  # so that 999.9 µs becomes 1 ms
    if rounded < 1e3:
        return f"{_three_digits(us)} µs"
    return f"{_three_digits(us / 1e3)} ms" if rounded < 1e6 else f"{_three_digits(us / 1e6)} s"


def seconds(value: float) -> str:
    """Format a duration in seconds: ``0.25 s``, ``10 s``, ``2 min 5 s``."""
    if value < 120:
        return f"{_three_digits(value)} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


def number(value: float) -> str:
    """Format a count or a rate: ``1,234``, ``56.7``."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else _three_digits(value)


def _three_digits(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return f"{float(text):f}".rstrip("0").rstrip(".") if "e" in text else text

"""Durations, counts and percentages: parsed from text and formatted for reports.

Invariants:

- Text carries its unit or multiple (``500ms``, ``10k``); a bare duration is in seconds.
- A formatted latency or duration has three significant digits.
"""

from __future__ import annotations

import re
from math import nan

from greeter.errors import ConfigError

MAX_QUANTITY = 10**12  # the largest count or rate of a plan: far above what a run can make

SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
MULTIPLES = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_DURATION = re.compile(rf"(?:{_NUMBER}(?:us|µs|ms|s|m|h))+", re.ASCII)
_PART = re.compile(rf"({_NUMBER})(us|µs|ms|s|m|h)", re.ASCII)
_QUANTITY = re.compile(rf"({_NUMBER})([kKmMgG]?)", re.ASCII)


def parse_duration(text: str) -> float:
    """Parse a duration.

    Args:
        text: as in ``500ms``, ``10s`` or ``1m30s``; a bare number is in seconds.

    Returns:
        Seconds.

    Raises:
        ConfigError: ``text`` is not a duration.
    """
    text = text.strip()
    if re.fullmatch(_NUMBER, text):
        return float(text)
    if not _DURATION.fullmatch(text):
        raise ConfigError(f"{text!r} is not a duration, as in 500ms, 10s or 2m")
    return sum(float(number) * SECONDS[unit] for number, unit in _PART.findall(text))


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
    """Format microseconds in a suitable unit: ``850 µs``, ``3.14 ms``, ``12.1 s``; ``-`` for None."""
    if us is None:
        return "-"
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

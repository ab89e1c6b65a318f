"""Durations, counts and percentages: read from text, and written for people.

The law: a number that people type carries its unit (``500ms``, ``10k``), and a number that people read
has three digits that count.
"""

from __future__ import annotations

import re
from math import nan

from greeter.errors import ConfigError

MAX_QUANTITY = 10**12  # connections of a run: more than anybody has the time for

SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
MULTIPLES = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_DURATION = re.compile(rf"(?:{_NUMBER}(?:us|µs|ms|s|m|h))+", re.ASCII)
_PART = re.compile(rf"({_NUMBER})(us|µs|ms|s|m|h)", re.ASCII)
_QUANTITY = re.compile(rf"({_NUMBER})([kKmMgG]?)", re.ASCII)


def parse_duration(text: str) -> float:
    """Seconds from ``500ms``, ``10s``, ``1m30s``; a bare number is seconds. Raises ConfigError."""
    text = text.strip()
    if re.fullmatch(_NUMBER, text):
        return float(text)
    if not _DURATION.fullmatch(text):
        raise ConfigError(f"{text!r} is no duration, as in 500ms, 10s or 2m")
    return sum(float(number) * SECONDS[unit] for number, unit in _PART.findall(text))


def parse_quantity(text: str) -> float:
    """A number of things from ``250``, ``10k``, ``1.5M``. Raises ConfigError."""
    match = _QUANTITY.fullmatch(text.strip())
    if not match:
        negative = re.fullmatch(rf"\s*-{_NUMBER}.*", text)
        kind = "number from 0 on" if negative else "number"
        raise ConfigError(f"{text!r} is no {kind}, as in 250, 10k or 1.5M")
    return float(match[1]) * MULTIPLES[match[2].lower()]


def parse_count(text: str) -> int:
    """A whole number of things up to MAX_QUANTITY; ``1.5k`` is one, ``1.5`` is not. Raises ConfigError."""
    value = parse_quantity(text)
    if value > MAX_QUANTITY:
        raise ConfigError(f"{text[:40]!r} is more than {MAX_QUANTITY:,}, the most there can be")
    if value != int(value):
        raise ConfigError(f"{text!r} is no whole number, as in 250, 10k or 1.5M")
    return int(value)


def parse_percent(text: str) -> float:
    """A number of percent, from 0 on; the sign may follow. Raises ConfigError."""
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = nan
    if not 0 <= value <= 1e6:
        raise ConfigError(f"{text!r} is not a number of percent")
    return value


def latency(us: float | None) -> str:
    """Microseconds for people, in the unit that suits them: ``850 µs``, ``3.14 ms``, ``12.1 s``."""
    if us is None:
        return "-"
    rounded = float(f"{us:.3g}")  # so that 999.9 µs are 1 ms
    if rounded < 1e3:
        return f"{_three_digits(us)} µs"
    return f"{_three_digits(us / 1e3)} ms" if rounded < 1e6 else f"{_three_digits(us / 1e6)} s"


def seconds(value: float) -> str:
    """A length of time for people: ``0.25 s``, ``10 s``, ``2 min 5 s``."""
    if value < 120:
        return f"{_three_digits(value)} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


def number(value: float) -> str:
    """A count or a rate for people: ``1,234``, ``56.7``."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else _three_digits(value)


def _three_digits(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return f"{float(text):f}".rstrip("0").rstrip(".") if "e" in text else text

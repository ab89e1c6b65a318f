"""Durations, parsed from text.

Invariants:

- A bare number is in seconds; a unit can follow each number (``500ms``, ``1m30s``).
"""

from __future__ import annotations

import re

from greeter.errors import ConfigError

SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_DURATION = rf"(?:{_NUMBER}(?:us|µs|ms|s|m|h))+"
_PART = rf"({_NUMBER})(us|µs|ms|s|m|h)"


def parse_duration(text: str) -> float:
    """Parse a duration.

    Args:
        text: As in ``500ms``, ``10s`` or ``1m30s``; a bare number is in seconds.

    Returns:
        Seconds.

    Raises:
        ConfigError: ``text`` is not a duration.
    """
    text = text.strip()
    if re.fullmatch(_NUMBER, text):
        return float(text)
    if not re.fullmatch(_DURATION, text):
        raise ConfigError(f"{text!r} is not a duration, as in 500ms, 10s or 2m")
    return sum(float(number) * SECONDS[unit] for number, unit in re.findall(_PART, text))

"""Durations: a table of the accepted forms, and one of text that is rejected."""

from __future__ import annotations

import pytest

from greeter.core.durations import parse_duration
from greeter.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500ms", 0.5),
        ("10s", 10.0),
        ("2m", 120.0),
        ("1h", 3600.0),
        ("1m30s", 90.0),
        ("250us", 250e-6),
        ("250µs", 250e-6),
        ("1.5s", 1.5),
        (" 3s ", 3.0),
        ("7", 7.0),
        ("0.25", 0.25),
        ("0s", 0.0),
    ],
)
def test_a_duration_has_a_unit_or_is_in_seconds(text: str, value: float) -> None:
    assert parse_duration(text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("text", ["", "s", "ms", "-1s", "1d", "1 s", "1.2.3s", "1e3s", "inf", "nan", "٣s"])
def test_text_that_is_not_a_duration_is_rejected(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_duration(text)
    assert repr(text.strip()) in str(caught.value)

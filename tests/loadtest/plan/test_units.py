from __future__ import annotations

import pytest

from greeter.errors import ConfigError
from greeter.loadtest.plan.units import (
    MAX_QUANTITY,
    latency,
    number,
    parse_count,
    parse_percent,
    parse_quantity,
    seconds,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [("250", 250), ("10k", 10_000), ("1.5M", 1_500_000), ("2G", 2_000_000_000), ("1K", 1000)],
)
def test_a_count_may_have_a_multiple(text: str, value: int) -> None:
    assert parse_count(text) == value
    assert parse_quantity(text) == value


def test_a_quantity_may_have_a_fraction_and_a_count_not() -> None:
    assert parse_quantity("0.5") == 0.5
    assert parse_count("1.5k") == 1500
    with pytest.raises(ConfigError, match=r"'1\.5' is not a whole number"):
        parse_count("1.5")


@pytest.mark.parametrize("text", ["9" * 400, "1001g"])
def test_a_count_has_a_maximum(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_count(text)
    assert str(caught.value) == f"'{text[:40]}' is more than the maximum of {MAX_QUANTITY:,}"


@pytest.mark.parametrize(("text", "value"), [("25", 25.0), ("0.5%", 0.5), ("0", 0.0)])
def test_a_percentage_may_end_with_its_sign(text: str, value: float) -> None:
    assert parse_percent(text) == value


@pytest.mark.parametrize("text", ["", "%", "nan", "-50", "inf", "1e7", "some"])
def test_text_that_is_not_a_percentage_is_rejected(text: str) -> None:
    with pytest.raises(ConfigError, match=f"^{text!r} is not a percentage, as in 25 or 25%$"):
        parse_percent(text)


@pytest.mark.parametrize("text", ["", "k", "-1", "1kk", "1 k", "10x", "1e3", "inf"])
def test_text_that_is_not_a_quantity_is_rejected(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a number"):
        parse_quantity(text)


def test_a_negative_number_is_rejected_as_such() -> None:
    with pytest.raises(ConfigError, match=r"^'-5' is not a number of 0 or more, as in 250, 10k or 1\.5M$"):
        parse_quantity("-5")


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (None, "-"),
        (0, "0 µs"),
        (7, "7 µs"),
        (850.4, "850 µs"),
        (95.93, "95.9 µs"),
        (999.4, "999 µs"),
        (999.6, "1 ms"),
        (3140, "3.14 ms"),
        (50_000, "50 ms"),
        (999_700, "1 s"),
        (12_100_000, "12.1 s"),
        (59_900_000, "59.9 s"),
        (60_000_000, "> 60 s"),
    ],
)
def test_a_latency_is_formatted_in_the_unit_that_suits_it(us: float | None, text: str) -> None:
    assert latency(us) == text


def test_durations_and_numbers_are_formatted() -> None:
    assert [seconds(s) for s in (0.25, 10.0, 119.9, 120, 125.4)] == [
        "0.25 s",
        "10 s",
        "120 s",
        "2 min",
        "2 min 5 s",
    ]
    assert [number(n) for n in (0, 7, 1234567, 56.78, 1234.5, 0.001)] == [
        "0",
        "7",
        "1,234,567",
        "56.8",
        "1,234",
        "0.001",
    ]
    assert number(0.00001) == "0.00001"

from __future__ import annotations

from typing import Any

import pytest

from greeter.loadtest.report.comparison import change_text, ratio, value_text, worst_first


@pytest.mark.parametrize(
    ("factor", "text"),
    [
        (1.0, "same"),
        (1.005, "same"),
        (0.995, "same"),
        (1.006, "+0.6 %"),
        (0.87, "-13 %"),
        (1.71, "+71 %"),
        (2.0, "+100 %"),
        (2.004, "+100 %"),
        (2.01, "2.0×"),
        (9.94, "9.9×"),
        (17.2, "17×"),
        (12_345.6, "12,346×"),
        (0.001, "-100 %"),
    ],
)
def test_a_ratio_reads_as_people_write_it(factor: float, text: str) -> None:
    assert ratio(factor) == text


def change(
    figure: str, old: float, new: float | None, unit: str = "us", *, worse: bool = False
) -> dict[str, Any]:
    percent = None if new is None or not old else 100 * (new - old) / old
    return {
        "figure": figure,
        "unit": unit,
        "old": old,
        "new": new,
        "change_percent": percent,
        "worse": worse,
    }


def test_the_worst_change_comes_first() -> None:
    figures = [
        change("connect p50", 100, 90),
        change("service p50", 100, 105),
        change("errors", 0, 1, "%", worse=True),
        change("rate greeted", 100, 50, "/s", worse=True),
        change("response p50", 100, 300, worse=True),
        change("response p99", 100, None, worse=True),
    ]
    assert [row["figure"] for row in worst_first(figures)] == [
        "errors",
        "response p99",
        "response p50",
        "rate greeted",
        "service p50",
        "connect p50",
    ]


def test_a_change_without_a_ratio_is_named() -> None:
    assert change_text(change("errors", 0, 1, "%")) == "new"
    assert change_text(change("errors", 0, 0, "%")) == "same"
    assert change_text(change("response p99", 100, None)) == "none"


def test_values_have_units() -> None:
    assert value_text(1234, "us") == "1.23 ms"
    assert value_text(1234, "/s") == "1,234/s"
    assert value_text(0.5, "%") == "0.5%"
    assert value_text(None, "us") == "-"

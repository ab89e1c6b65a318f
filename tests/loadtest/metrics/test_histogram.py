"""Histograms compared with those of the hdrhistogram package, bucket for bucket."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]  # the package has no types
from hypothesis import example, given, settings
from hypothesis import strategies as st

from greeter.errors import MissingExtra
from greeter.loadtest.metrics.histogram import (
    HIGHEST_US,
    LOWEST_US,
    PERCENTILES,
    Histogram,
    highest,
    index_of,
    keys_at,
    lowest,
)

# Small values, values around each doubling, and values of the whole range.
microseconds = st.one_of(
    st.integers(LOWEST_US, 5000),
    st.builds(lambda bits, off: max(1, (1 << bits) + off), st.integers(0, 25), st.integers(-2, 2)),
    st.integers(LOWEST_US, HIGHEST_US),
)


def recorded(values: list[int]) -> tuple[Histogram, Any]:
    ours, theirs = Histogram(), HdrHistogram(LOWEST_US, HIGHEST_US, 3)
    for us in values:
        ours.record(us / 1e6)
        assert theirs.record_value(us)
    return ours, theirs


@settings(max_examples=25)
@given(st.lists(microseconds, min_size=1, max_size=50))
@example([HIGHEST_US])
@example([1, 2047, 2048, 2049])
@pytest.mark.thorough
def test_every_figure_equals_that_of_the_package(values: list[int]) -> None:
    ours, theirs = recorded(values)
    summary = ours.summary()
    assert summary.pop("count") == theirs.get_total_count() == len(values)
    assert summary.pop("min") == theirs.get_min_value()
    assert summary.pop("max") == theirs.get_max_value()
    assert summary.pop("mean") == pytest.approx(theirs.get_mean_value(), abs=0.001)
    assert summary == {name: theirs.get_value_at_percentile(percent) for name, percent in PERCENTILES.items()}


@settings(max_examples=25)
@given(st.lists(microseconds, max_size=30))
def test_an_encoding_has_what_was_recorded(values: list[int]) -> None:
    ours, theirs = recorded(values)
    back = HdrHistogram.decode(ours.encode())
    assert back.equals(theirs)
    assert Histogram.decode(ours.encode()).counts == ours.counts


@settings(max_examples=50)
@given(microseconds)
def test_a_bucket_is_exact_to_three_digits(us: int) -> None:
    index = index_of(us)
    assert lowest(index) <= us <= highest(index)
    assert (highest(index) - lowest(index)) <= us / 1000
    assert index_of(lowest(index)) == index_of(highest(index)) == index
    one = Histogram()
    one.record(us / 1e6)
    assert one.counts == {index: 1}, "record has index_of inlined"


@settings(max_examples=25)
@given(st.lists(microseconds, max_size=30), st.lists(microseconds, max_size=30))
def test_adding_equals_recording_all(some: list[int], others: list[int]) -> None:
    whole = recorded(some)[0]
    whole.add(recorded(others)[0])
    assert whole.counts == recorded(some + others)[0].counts
    sparse = Histogram(recorded(some)[0].counts, sparse=True)
    sparse.add(recorded(others)[0])
    assert sparse.counts == whole.counts


def test_values_outside_the_range_are_clamped() -> None:
    histogram = Histogram()
    histogram.record(0.0)
    histogram.record(0.2e-6)
    assert histogram.counts == {1: 2}
    histogram.record(61.0)
    assert (histogram.over, histogram.summary()["max"]) == (1, highest(index_of(HIGHEST_US)))
    other = Histogram()
    other.add(histogram)
    assert other.over == 1
    assert len(set(map(index_of, range(1, 5000)))) == 2047 + 1024 + (5000 - 4096 + 3) // 4


def test_the_percentiles_of_a_known_series() -> None:
    histogram = Histogram(dict.fromkeys(range(1, 1001), 1))
    assert histogram.percentiles(50, 90, 99, 99.9, 99.99) == [500, 900, 990, 999, 1000]
    assert histogram.percentiles(0, 100) == [1, 1000]
    assert keys_at({5: 1}, 50, 99) == [5, 5]
    assert keys_at({}, 50) == []


def test_an_empty_histogram_has_no_figures() -> None:
    empty = Histogram()
    assert empty.summary() == {"count": 0, **dict.fromkeys(("min", "mean", *PERCENTILES, "max"))}
    assert empty.percentiles(50, 99) == [None, None]
    assert HdrHistogram.decode(empty.encode()).get_total_count() == 0


def test_between_counts_a_range() -> None:
    histogram = Histogram()
    for s in (0.5, 0.999, 1.0, 1.02, 2.9, 3.1, 7.5):
        histogram.record(s)
    assert [histogram.between(a, b) for a, b in ((1, 3), (3, 7), (7, float("inf")))] == [3, 1, 1]


@pytest.mark.parametrize("text", ["", "nonsense", "HISTFAAAAB", "!!!!"])
def test_text_that_is_not_an_encoding_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="not an HdrHistogram encoding"):
        Histogram.decode(text)


def test_an_encoding_with_a_huge_count_is_rejected() -> None:
    """The sum of several could overflow 64 bits."""
    theirs = HdrHistogram(LOWEST_US, HIGHEST_US, 3)
    theirs.record_value(5, 2**50)
    with pytest.raises(ValueError, match="an HdrHistogram encoding with a count of 1,125,899,906,842,624"):
        Histogram.decode(theirs.encode().decode())


def test_an_encoding_with_another_range_is_decoded() -> None:
    other = HdrHistogram(1, 3_600_000_000, 2)
    other.record_value(5000, 3)
    other.record_value(120_000_000)  # beyond our range
    back = Histogram.decode(other.encode())
    assert back.total == 4
    assert back.counts[index_of(HIGHEST_US)] == 1


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hdrh", None)
    for call in (Histogram().encode, lambda: Histogram.decode("HIST")):
        with pytest.raises(MissingExtra, match=r"greeter load needs .*'\.\[load\]' in greeter's source tree"):
            call()

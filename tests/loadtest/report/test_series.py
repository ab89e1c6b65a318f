from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from greeter.loadtest.metrics.histogram import Histogram, index_of
from greeter.loadtest.metrics.timeline import Bucket, Interval, Timeline
from greeter.loadtest.report.series import TimeSlice, heat_rows, percentile_curve, row_bounds, time_slices

LATENCIES = st.dictionaries(st.integers(1, 60_000_000), st.integers(1, 1000), max_size=30)


def timeline(*counts: int) -> Timeline:
    made = Timeline(1.0)
    for second, count in enumerate(counts):
        interval = Interval(float(second), count, count, 0, 1)
        for _ in range(count):
            interval.response.record(0.003)
        made.add(interval)
    return made


def histogram_of(latencies: dict[int, int]) -> Histogram:
    counts: Counter[int] = Counter()
    for us, count in latencies.items():
        counts[index_of(us)] += count  # several may share a bucket
    return Histogram(counts)


def bucket(latencies: dict[int, int]) -> Bucket:
    made = Timeline()
    made.add(Interval(response=histogram_of(latencies)))
    return made.buckets[0]


# -- over time


def cut(duration: float, *counts: int) -> list[tuple[float, float, float]]:
    made = timeline(*counts)
    found = time_slices(made.width, made.rows(), duration)
    assert sum(time_slice.bucket.attempted for time_slice in found) == sum(counts)
    assert sum(sum(time_slice.bucket.latencies.values()) for time_slice in found) == sum(counts)
    return [(time_slice.begin, time_slice.end, time_slice.per_second("attempted")) for time_slice in found]


def test_the_last_slice_ends_with_the_run() -> None:
    assert cut(2.0, 10, 10) == [(0, 1, 10), (1, 2, 10)]
    assert cut(1.6, 10, 6) == [(0, 1, 10), (1, 1.6, 10)]
    assert cut(0.2, 10) == [(0, 0.2, 50)]


def test_a_short_last_slice_is_merged_into_the_one_before() -> None:
    assert cut(2.003, 10, 10, 1) == [(0, 1, 10), (1, 2.003, round(11 / 1.003, 3))]
    assert cut(0.003, 10) == [(0, 0.003, 3333.333)], "no slice before"
    assert cut(1e-12, 10) == [(0, 1, 10)], "the duration is rounded to 0"


def test_a_run_of_no_duration_has_a_finite_rate() -> None:
    assert cut(0.0, 10) == [(0, 1, 10)]
    assert cut(0.0) == []


def test_the_latencies_of_a_time_slice() -> None:
    time_slice = TimeSlice(0, 1, bucket({100: 60, 1000: 38, 5000: 1, 7000: 1}))
    assert time_slice.latencies == {"p50": 100, "p90": 1003, "p95": 1003, "p99": 5023, "max": 7007}
    assert TimeSlice(0, 1, Bucket()).latencies == {}
    assert TimeSlice(2, 0.5, Bucket()).middle == 2.25


@given(LATENCIES)
@settings(max_examples=50)
def test_percentiles_of_a_slice_equal_those_of_the_timeline(latencies: dict[int, int]) -> None:
    made = Timeline()
    made.buckets.append(bucket(latencies))
    row = made.rows()[0]
    found = time_slices(1.0, [row], 1.0)[0].latencies
    assert (found.get("p50"), found.get("p99")) == (row["p50_us"], row["p99_us"])


# -- over percentiles


@given(LATENCIES)
@example({1: 17, 2: 1})
@settings(max_examples=50)
def test_the_curve_passes_through_the_percentiles(latencies: dict[int, int]) -> None:
    histogram = histogram_of(latencies)
    points = dict(percentile_curve(histogram))
    if not latencies:
        assert points == {}
        return
    total = histogram.total
    summary = histogram.summary()
    for x, stat in ((10.0, "p90"), (100.0, "p99"), (1000.0, "p99.9"), (10_000.0, "p99.99")):
        if x <= 2 * total:
            assert points[x] == summary[stat]
    assert points[1.0] == histogram.percentiles(0)[0]
    assert max(points.items())[1] == summary["max"]
    assert all(a <= b for a, b in pairwise(points.values()))


def test_the_curve_has_a_bounded_number_of_points() -> None:
    assert len(percentile_curve(Histogram({index_of(1000): 1}))) < 10
    assert len(percentile_curve(Histogram({index_of(1000): 10**9, index_of(5000): 1}))) < 200


# -- the heat map


@given(st.lists(LATENCIES, min_size=1, max_size=5))
@settings(max_examples=50)
def test_every_latency_is_in_one_cell(columns: list[dict[int, int]]) -> None:
    run = [TimeSlice(index, 1, bucket(latencies)) for index, latencies in enumerate(columns)]
    bounds = row_bounds(run)
    rows = heat_rows(run, bounds)
    assert len(bounds) <= 41
    assert all(low < high for low, high in pairwise(bounds))
    for column, latencies in enumerate(columns):
        assert sum(row[column] for row in rows) == sum(latencies.values())
        for row, (low, high) in zip(rows, pairwise(bounds), strict=True):
            inside = [n for us, n in run[column].bucket.latencies.items() if low <= us < high]
            assert row[column] == sum(inside)


def test_heat_map_rows_are_as_fine_as_their_number_allows() -> None:
    alike = [TimeSlice(0, 1, bucket({1000: 1, 1100: 1}))]
    apart = [TimeSlice(0, 1, bucket({1: 1, 60_000_000: 1}))]
    assert len(row_bounds(alike)) > 4
    assert 20 < len(row_bounds(apart)) <= 41
    assert row_bounds([]) == []


@pytest.mark.parametrize("us", [1, 7, 1000, 60_000_000])
def test_a_single_latency_has_one_row(us: int) -> None:
    run = [TimeSlice(0, 1, bucket({us: 3}))]
    low, high = row_bounds(run)
    assert low <= us < high
    assert heat_rows(run, [low, high]) == [[3]]

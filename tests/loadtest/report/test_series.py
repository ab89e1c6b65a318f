from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from greeter.loadtest.metrics.histogram import Histogram, index_of
from greeter.loadtest.metrics.timeline import Bucket, Interval, Timeline
from greeter.loadtest.report.series import Slot, curve, edges, heat, slots

LATENCIES = st.dictionaries(st.integers(1, 60_000_000), st.integers(1, 1000), max_size=30)


def timeline(*counts: int) -> Timeline:
    made = Timeline()
    for second, count in enumerate(counts):
        interval = Interval(float(second), count, count, 0, 1)
        for _ in range(count):
            interval.response.record(0.003)
        made.add(interval)
    return made


def histogram_of(latencies: dict[int, int]) -> Histogram:
    counts: Counter[int] = Counter()
    for us, count in latencies.items():
        counts[index_of(us)] += count  # which several may share
    return Histogram(counts)


def bucket(latencies: dict[int, int]) -> Bucket:
    made = Timeline()
    made.add(Interval(response=histogram_of(latencies)))
    return made.buckets[0]


# -- along time


def cut(duration: float, *counts: int) -> list[tuple[float, float, float]]:
    made = timeline(*counts)
    found = slots(made.width, made.rows(), duration)
    assert sum(slot.bucket.attempted for slot in found) == sum(counts)
    assert sum(sum(slot.bucket.latencies.values()) for slot in found) == sum(counts)
    return [(slot.begin, slot.end, slot.per_second("attempted")) for slot in found]


def test_the_last_bucket_is_as_long_as_the_run_went_on_in_it() -> None:
    assert cut(2.0, 10, 10) == [(0, 1, 10), (1, 2, 10)]
    assert cut(1.6, 10, 6) == [(0, 1, 10), (1, 1.6, 10)]
    assert cut(0.2, 10) == [(0, 0.2, 50)]


def test_what_is_less_than_half_a_bucket_belongs_to_the_one_before() -> None:
    assert cut(2.003, 10, 10, 1) == [(0, 1, 10), (1, 2.003, round(11 / 1.003, 3))]
    assert cut(0.003, 10) == [(0, 0.003, 3333.333)], "there is none before"
    assert cut(1e-12, 10) == [(0, 1, 10)], "nobody can have run for so short"


def test_a_run_of_no_time_has_no_rate_out_of_this_world() -> None:
    assert cut(0.0, 10) == [(0, 1, 10)]
    assert cut(0.0) == []


def test_the_latencies_of_a_slot() -> None:
    slot = Slot(0, 1, bucket({100: 60, 1000: 38, 5000: 1, 7000: 1}))
    assert slot.latencies == {"p50": 100, "p90": 1003, "p99": 5023, "max": 7007}
    assert Slot(0, 1, Bucket()).latencies == {}
    assert Slot(2, 0.5, Bucket()).middle == 2.25


@given(LATENCIES)
@settings(max_examples=50)
def test_they_are_those_of_the_timeline(latencies: dict[int, int]) -> None:
    made = Timeline()
    made.buckets.append(bucket(latencies))
    row = made.rows()[0]
    found = slots(1.0, [row], 1.0)[0].latencies
    assert (found.get("p50"), found.get("p99")) == (row["p50_us"], row["p99_us"])


# -- along the percentiles


@given(LATENCIES)
@example({1: 17, 2: 1})
@settings(max_examples=50)
def test_the_curve_goes_through_the_percentiles(latencies: dict[int, int]) -> None:
    histogram = histogram_of(latencies)
    points = dict(curve(histogram))
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


def test_the_curve_has_as_many_points_as_the_run_has_digits() -> None:
    assert len(curve(Histogram({index_of(1000): 1}))) < 10
    assert len(curve(Histogram({index_of(1000): 10**9, index_of(5000): 1}))) < 200


# -- the heat map


@given(st.lists(LATENCIES, min_size=1, max_size=5))
@settings(max_examples=50)
def test_every_latency_has_its_cell(columns: list[dict[int, int]]) -> None:
    run = [Slot(index, 1, bucket(latencies)) for index, latencies in enumerate(columns)]
    bounds = edges(run)
    rows = heat(run, bounds)
    assert len(bounds) <= 41
    assert all(low < high for low, high in pairwise(bounds))
    for column, latencies in enumerate(columns):
        assert sum(row[column] for row in rows) == sum(latencies.values())
        for row, (low, high) in zip(rows, pairwise(bounds), strict=True):
            inside = [n for us, n in run[column].bucket.latencies.items() if low <= us < high]
            assert row[column] == sum(inside)


def test_rows_are_as_fine_as_there_is_room() -> None:
    alike = [Slot(0, 1, bucket({1000: 1, 1100: 1}))]
    apart = [Slot(0, 1, bucket({1: 1, 60_000_000: 1}))]
    assert len(edges(alike)) > 4
    assert 20 < len(edges(apart)) <= 41
    assert edges([]) == []


@pytest.mark.parametrize("us", [1, 7, 1000, 60_000_000])
def test_one_latency_has_one_row(us: int) -> None:
    run = [Slot(0, 1, bucket({us: 3}))]
    low, high = edges(run)
    assert low <= us < high
    assert heat(run, [low, high]) == [[3]]

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greeter.loadtest.metrics.histogram import Histogram, decode
from greeter.loadtest.metrics.timeline import MAX_BUCKETS, Bucket, Interval, Timeline, interval_span


def interval(begin: float, *latencies: float, open: int = 1, failed: int = 0) -> Interval:
    response = Histogram(sparse=True)
    for latency in latencies:
        response.record(latency)
    n = len(latencies)
    return Interval(begin, attempted=n + failed, greeted=n, failed=failed, open=open, response=response)


def test_intervals_are_added_to_buckets_of_a_second() -> None:
    timeline = Timeline(1.0)
    timeline.add(interval(0.0, 0.001, 0.001, open=3))
    timeline.add(interval(0.75, 0.001, 0.1, open=2, failed=1))
    timeline.add(interval(2.0, 0.005))
    rows = timeline.rows()
    assert [(row["t"], row["attempted"], row["greeted"], row["failed"], row["open"]) for row in rows] == [
        (0.0, 5, 4, 1, 3),
        (1.0, 0, 0, 0, 0),
        (2.0, 1, 1, 0, 1),
    ]
    assert rows[0]["p50_us"] == pytest.approx(1000, rel=0.01)
    assert rows[0]["p95_us"] == rows[0]["p99_us"] == rows[0]["max_us"] == pytest.approx(100_000, rel=0.01)
    assert {rows[1][name] for name in ("p50_us", "p95_us", "p99_us", "max_us")} == {None}


def test_a_short_run_has_a_shape() -> None:
    timeline = Timeline()
    for number in range(20):
        timeline.add(interval(number * 0.05, 0.2 if 8 <= number < 12 else 0.001))
    rows = timeline.rows()
    assert [row["t"] for row in rows] == [pytest.approx(number * 0.05) for number in range(20)]
    slow = [row["t"] for row in rows if row["max_us"] > 100_000]
    assert slow == [0.4, 0.45, 0.5, 0.55]


@pytest.mark.parametrize("width", [0.05, 10 / 60, 0.25, 31 / 60, 1.0, 10.0])
def test_a_bucket_is_a_whole_number_of_intervals(width: float) -> None:
    span = interval_span(width)
    assert span <= 0.25
    assert width / span == pytest.approx(round(width / span))
    timeline = Timeline(width)
    for number in range(1000):
        timeline.add(interval(number * span, 0.001))
    counts = [row["attempted"] for row in timeline.rows()]
    assert set(counts[:-1]) == {round(width / span) * round(timeline.width / width)}


def test_the_bucket_in_which_the_run_ended_is_partial() -> None:
    timeline = Timeline(1.0)
    for second in range(3):
        timeline.add(interval(float(second), 0.001))
    assert [row["partial"] for row in timeline.rows(2.4)] == [False, False, True]
    assert [row["partial"] for row in timeline.rows(2.995)] == [False, False, False]
    assert [row["partial"] for row in timeline.rows()] == [False, False, False]


def test_failures_are_counted_by_class() -> None:
    one, other = Timeline(1.0), Timeline(1.0)
    for timeline, errors in ((one, {"reset": 1}), (one, {"empty": 2, "reset": 1}), (other, {"empty": 5})):
        made = interval(0.0, failed=sum(errors.values()))
        made.errors = errors
        timeline.add(made)
    one.merge(other)
    assert one.rows()[0]["errors"] == {"reset": 2, "empty": 7}


def test_timelines_of_unrelated_widths_are_added_where_a_bucket_begins() -> None:
    one, other = Timeline(1.0), Timeline(0.3)
    one.add(interval(0.0, 0.001, open=2))
    for number in range(5):
        other.add(interval(number * 0.3, 0.001, open=number))
    for whole, part in ((one, other), (other, one)):
        copies = [Timeline.from_rows(timeline.width, timeline.rows()) for timeline in (whole, part)]
        copies[0].merge(copies[1])
        rows = copies[0].rows()
        assert sum(row["attempted"] for row in rows) == 6
        assert len(rows) == 2
        assert rows[0]["open"] == 2 + 3, "the most of one, and that of the other"


def test_a_run_of_unknown_length_gets_about_a_sixtieth_of_it_in_a_bucket() -> None:
    timeline = Timeline()
    for number in range(500):
        timeline.add(interval(number * 0.05, 0.001))
    timeline.coarsen()
    assert 60 <= len(timeline.rows()) <= 120
    timeline.buckets = [Bucket()] * 120
    timeline.coarsen()
    assert len(timeline.buckets) == 120


def test_a_full_timeline_doubles_its_width_and_loses_nothing() -> None:
    timeline = Timeline(1.0)
    for second in range(4 * MAX_BUCKETS + 1):
        timeline.add(interval(float(second), 0.001, open=second))
        assert len(timeline.buckets) <= MAX_BUCKETS
    assert timeline.width == 8.0
    rows = timeline.rows()
    assert sum(row["attempted"] for row in rows) == 4 * MAX_BUCKETS + 1
    assert rows[10]["t"] == 80.0
    assert (rows[10]["attempted"], rows[10]["open"]) == (8, 87)
    assert sum(n for n in decode(rows[10]["histogram"]).values()) == 8


def test_a_gap_of_hours_doubles_the_width() -> None:
    timeline = Timeline(1.0)
    timeline.add(interval(0.0, 0.001))
    timeline.add(interval(86_400.0, 0.001))
    assert len(timeline.buckets) <= MAX_BUCKETS
    assert timeline.width == 256.0


moments = st.lists(st.integers(0, 40_000).map(lambda n: n * 0.25), max_size=30)


@settings(max_examples=30)
@given(moments, moments)
def test_merging_adds_timelines_of_any_width(some: list[float], others: list[float]) -> None:
    apart, other, whole = Timeline(1.0), Timeline(1.0), Timeline(1.0)
    for begin in sorted(some):
        apart.add(interval(begin, 0.002, open=0))
    for begin in sorted(others):
        other.add(interval(begin, 0.01, failed=1, open=0))
    apart.merge(other)
    for begin in sorted(some):
        whole.add(interval(begin, 0.002, open=0))
    for begin in sorted(others):
        whole.add(interval(begin, 0.01, failed=1, open=0))
    assert (apart.width, apart.rows()) == (whole.width, whole.rows())


def test_open_connections_of_workers_are_added() -> None:
    one, other = Timeline(1.0), Timeline(1.0)
    one.add(interval(0.0, 0.001, open=5))
    other.add(interval(0.0, 0.001, open=7))
    one.merge(other)
    assert one.rows()[0]["open"] == 12


def test_rows_and_intervals_survive_json() -> None:
    timeline = Timeline(1.0)
    timeline.add(interval(3.0, 0.001, 0.2, failed=2))
    back = Timeline.from_rows(timeline.width, json.loads(json.dumps(timeline.rows())))
    assert back.rows() == timeline.rows()
    one = interval(0.25, 0.001, 0.2, failed=2)
    one.errors, one.span = {"reset": 2}, 0.05
    restored = Interval.from_json(json.loads(json.dumps(one.to_json())))
    assert restored.response.counts == one.response.counts
    assert (restored.errors, restored.span) == (one.errors, one.span)
    assert (restored.begin, restored.attempted, restored.greeted, restored.failed, restored.open) == (
        0.25, 4, 2, 2, 1,
    )  # fmt: skip


def test_a_connection_that_was_cut_off_is_removed() -> None:
    timeline = Timeline(1.0)
    timeline.add(interval(0.0, 0.001))
    timeline.add(interval(1.0, 0.001))
    timeline.retract(1.2)
    assert [row["attempted"] for row in timeline.rows()] == [1, 0]


def test_latencies_keep_two_digits() -> None:
    timeline = Timeline(1.0)
    timeline.add(interval(0.0, *(us / 1e6 for us in range(1, 60_000, 7))))
    classes = timeline.buckets[0].latencies
    assert decode(timeline.rows()[0]["histogram"]) == classes, "the classes are those of HdrHistogram"
    assert sum(classes.values()) == len(range(1, 60_000, 7))
    assert len(classes) < 1300
    widths = [(after - us) / us for us, after in pairwise(classes) if us > 1000]
    assert max(widths) < 0.02

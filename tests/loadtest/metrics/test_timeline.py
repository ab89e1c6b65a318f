from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greeter.loadtest.metrics.histogram import Histogram, decode
from greeter.loadtest.metrics.timeline import INTERVAL, MAX_BUCKETS, Interval, Timeline


def interval(begin: float, *latencies: float, open: int = 1, failed: int = 0) -> Interval:
    response = Histogram(sparse=True)
    for latency in latencies:
        response.record(latency)
    n = len(latencies)
    return Interval(begin, attempted=n + failed, greeted=n, failed=failed, open=open, response=response)


def test_intervals_are_added_to_buckets_of_a_second() -> None:
    timeline = Timeline()
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
    assert rows[0]["p99_us"] == pytest.approx(100_000, rel=0.01)
    assert (rows[1]["p50_us"], rows[1]["p99_us"]) == (None, None)


def test_a_run_of_less_than_a_second_has_one_row() -> None:
    timeline = Timeline()
    timeline.add(interval(0.0, 0.001))
    assert len(timeline.rows()) == 1


def test_a_full_timeline_doubles_its_width_and_loses_nothing() -> None:
    timeline = Timeline()
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
    timeline = Timeline()
    timeline.add(interval(0.0, 0.001))
    timeline.add(interval(86_400.0, 0.001))
    assert len(timeline.buckets) <= MAX_BUCKETS
    assert timeline.width == 256.0


moments = st.lists(st.integers(0, 40_000).map(lambda n: n * INTERVAL), max_size=30)


@settings(max_examples=30, deadline=None)
@given(moments, moments)
def test_merging_adds_timelines_of_any_width(some: list[float], others: list[float]) -> None:
    apart, other, whole = Timeline(), Timeline(), Timeline()
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
    one, other = Timeline(), Timeline()
    one.add(interval(0.0, 0.001, open=5))
    other.add(interval(0.0, 0.001, open=7))
    one.merge(other)
    assert one.rows()[0]["open"] == 12


def test_rows_and_intervals_survive_json() -> None:
    timeline = Timeline()
    timeline.add(interval(3.0, 0.001, 0.2, failed=2))
    back = Timeline.from_rows(timeline.width, json.loads(json.dumps(timeline.rows())))
    assert back.rows() == timeline.rows()
    one = interval(0.25, 0.001, 0.2, failed=2)
    restored = Interval.from_json(json.loads(json.dumps(one.to_json())))
    assert restored.response.counts == one.response.counts
    assert (restored.begin, restored.attempted, restored.greeted, restored.failed, restored.open) == (
        0.25, 4, 2, 2, 1,
    )  # fmt: skip


def test_a_connection_that_was_cut_off_is_removed() -> None:
    timeline = Timeline()
    timeline.add(interval(0.0, 0.001))
    timeline.add(interval(1.0, 0.001))
    timeline.retract(1.2)
    assert [row["attempted"] for row in timeline.rows()] == [1, 0]


def test_latencies_keep_two_digits() -> None:
    timeline = Timeline()
    timeline.add(interval(0.0, *(us / 1e6 for us in range(1, 60_000, 7))))
    classes = timeline.buckets[0].latencies
    assert decode(timeline.rows()[0]["histogram"]) == classes, "the classes are those of HdrHistogram"
    assert sum(classes.values()) == len(range(1, 60_000, 7))
    assert len(classes) < 1300
    widths = [(after - us) / us for us, after in pairwise(classes) if us > 1000]
    assert max(widths) < 0.02

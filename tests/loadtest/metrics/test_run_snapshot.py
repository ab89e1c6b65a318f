from __future__ import annotations

import pytest

from greeter.loadtest.metrics.histogram import Histogram
from greeter.loadtest.metrics.run_snapshot import Snapshot
from greeter.loadtest.metrics.timeline import Interval

INTERVAL = 0.25


def interval(number: int, attempted: int, us: int = 1000, open: int = 1) -> Interval:
    return Interval(number * INTERVAL, attempted, attempted, 0, open, Histogram({us: attempted}, sparse=True))


def test_intervals_are_added_up() -> None:
    snapshot = Snapshot()
    assert (snapshot.rate, snapshot.p99s_us(9), snapshot.percentile_us(50)) == (0.0, [], None)
    for number in range(8):
        snapshot.add(interval(number, attempted=10 * (number + 1), open=number))
    assert snapshot.elapsed == 2.0
    assert (snapshot.attempted, snapshot.greeted, snapshot.failed) == (360, 360, 0)
    assert snapshot.open == 7
    assert snapshot.rate == 50 + 60 + 70 + 80
    assert snapshot.p99s_us(3) == [1000] * 3
    assert snapshot.percentile_us(99) == 1000


def test_intervals_of_several_workers_at_the_same_time_are_added() -> None:
    snapshot = Snapshot()
    for number in range(4):
        for worker in range(2):
            snapshot.add(interval(number, attempted=25, us=1000 * (worker + 1), open=3 + worker), worker)
    assert snapshot.rate == 200
    assert snapshot.open == 7
    assert snapshot.p99s_us(9) == [2000] * 4, "of all workers"


def test_an_interval_that_arrives_late_counts_at_its_own_time() -> None:
    snapshot = Snapshot()
    snapshot.add(interval(0, 10), 0)
    snapshot.add(interval(1, 0), 0)
    snapshot.add(interval(0, 30, us=2000), 1)
    assert snapshot.rate == 80
    assert snapshot.p99s_us(9) == [2000, None], "None without a response"
    assert snapshot.elapsed == 0.5


def test_a_snapshot_keeps_a_minute_of_intervals() -> None:
    snapshot = Snapshot()
    for number in range(1000):
        snapshot.add(interval(number, 1))
    assert len(snapshot.p99s_us(1000)) == 240
    assert snapshot.attempted == 1000
    assert snapshot.rate == pytest.approx(4.0)

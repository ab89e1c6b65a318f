"""Counters of a server: every class exists from the start, and servers share none."""

from __future__ import annotations

import dataclasses

import pytest

from greeter import ServerStats
from greeter.core.stats import BOUNDS, FAILURES, REJECTIONS, LatencyHistogram


def test_everything_starts_at_zero() -> None:
    stats = ServerStats()
    assert stats.failed == dict.fromkeys(FAILURES, 0)
    assert stats.rejected == dict.fromkeys(REJECTIONS, 0)
    for field in dataclasses.fields(stats):
        if field.type == "int":
            assert getattr(stats, field.name) == 0
    assert not any(stats.greeting_time.counts)


def test_servers_do_not_share_counters() -> None:
    one, two = ServerStats(), ServerStats()
    one.accepted += 1
    one.failed["reset"] += 1
    one.rejected["rate"] += 1
    assert two == ServerStats()


def test_every_class_and_every_counter_is_documented() -> None:
    assert all(FAILURES.values())
    assert all(REJECTIONS.values())
    assert not FAILURES.keys() & REJECTIONS.keys()
    for field in dataclasses.fields(ServerStats):
        assert f"``{field.name}``" in (ServerStats.__doc__ or "")


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.0, 0), (0.0001, 0), (0.000101, 1), (0.001, 3), (10.0, len(BOUNDS) - 1), (10.01, len(BOUNDS))],
)
def test_a_bucket_includes_its_upper_bound(seconds: float, bucket: int) -> None:
    times = LatencyHistogram()
    times.add(seconds, clients=3)
    assert times.counts[bucket] == sum(times.counts) == 3
    assert times.micros == int(seconds * 1_000_000) * 3


def test_histograms_add_up() -> None:
    one, two = LatencyHistogram(), LatencyHistogram()
    one.add(0.0002)
    two.add(0.0002)
    two.add(99)
    both = one + two
    assert (both.counts[1], both.counts[-1], both.micros) == (2, 1, 99_000_400)
    assert (sum(one.counts), sum(two.counts)) == (1, 2)


def test_bounds_increase() -> None:
    assert list(BOUNDS) == sorted(set(BOUNDS))

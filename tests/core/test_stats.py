"""Counters of a server: every class exists from the start, servers share none, processes may."""

from __future__ import annotations

from array import array

import pytest

from greeter import ServerStats
from greeter.core.stats import (
    ACCEPTED,
    BLOCK_LENGTH,
    BOUNDS,
    DATAGRAM_COUNTERS,
    FAILED,
    FAILURES,
    GAUGES,
    REJECTED,
    REJECTIONS,
    LatencyHistogram,
)

COUNTERS = (
    *("accepted", "greeted", "bytes_sent", "linger_timeouts"),
    *("accept_errors", "paused_micros", "drains"),
)


def shared_block() -> memoryview[int]:
    return memoryview(array("q", bytes(8 * BLOCK_LENGTH)))


def count_one_of_each(stats: ServerStats) -> None:
    """Count a different number of each thing, by index as the server does."""
    for number, index in enumerate(range(ACCEPTED, BLOCK_LENGTH), 1):
        stats.block[index] += number


def values(stats: ServerStats) -> list[object]:
    return [getattr(stats, name) for name in (*COUNTERS, "failed", "rejected", "greeting_time", "datagrams")]


def test_everything_starts_at_zero() -> None:
    stats = ServerStats()
    assert stats.failed == dict.fromkeys(FAILURES, 0)
    assert stats.rejected == dict.fromkeys(REJECTIONS, 0)
    assert stats.datagrams == dict.fromkeys(DATAGRAM_COUNTERS, 0)
    assert not any(getattr(stats, name) for name in (*COUNTERS, *GAUGES, "unfinished", "datagrams_dropped"))
    assert stats.greeting_time == LatencyHistogram()


def test_servers_do_not_share_counters() -> None:
    one, two = ServerStats(), ServerStats()
    count_one_of_each(one)
    assert values(two) == values(ServerStats())


def test_every_counter_has_a_word_of_its_own() -> None:
    stats = ServerStats()
    count_one_of_each(stats)
    times = stats.greeting_time
    found = [getattr(stats, name) for name in COUNTERS] + [times.micros]
    found += [*stats.failed.values(), *stats.rejected.values(), *times.counts, *stats.datagrams.values()]
    assert found == list(range(1, BLOCK_LENGTH))


def test_every_class_and_every_counter_is_documented() -> None:
    assert all(FAILURES.values())
    assert all(REJECTIONS.values())
    assert not FAILURES.keys() & REJECTIONS.keys()
    for name in (
        *COUNTERS,
        *GAUGES,
        "failed",
        "rejected",
        "greeting_time",
        "datagrams",
        "datagrams_dropped",
        "block",
    ):
        assert f"``{name}``" in (ServerStats.__doc__ or "")


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.0, 0), (0.0001, 0), (0.000101, 1), (0.001, 3), (10.0, len(BOUNDS) - 1), (10.01, len(BOUNDS))],
)
def test_a_bucket_includes_its_upper_bound(seconds: float, bucket: int) -> None:
    stats = ServerStats()
    stats.count_greeted(72, seconds, clients=3)
    times = stats.greeting_time
    assert times.counts[bucket] == sum(times.counts) == 3
    assert times.micros == int(seconds * 1_000_000) * 3
    assert (stats.greeted, stats.bytes_sent) == (3, 72)


def test_histograms_add_up() -> None:
    one, two = ServerStats(), ServerStats()
    one.count_greeted(1, 0.0002)
    two.count_greeted(1, 0.0002)
    two.count_greeted(1, 99)
    both = one.greeting_time + two.greeting_time
    assert (both.counts[1], both.counts[-1], both.micros) == (2, 1, 99_000_400)
    assert (sum(one.greeting_time.counts), sum(two.greeting_time.counts)) == (1, 2)


def test_bounds_increase() -> None:
    assert list(BOUNDS) == sorted(set(BOUNDS))


# -- shared with another process


def test_counters_in_a_shared_block_are_read_as_they_are_counted() -> None:
    block = shared_block()
    ours = ServerStats()
    count_one_of_each(ours)
    ours.move_to(block)
    theirs = ServerStats.read_from(block)
    assert theirs is not None
    assert values(theirs) == values(ours)
    ours.block[ACCEPTED] += 1
    ours.count_greeted(24, 0.1)
    assert values(theirs) == values(ours)


def test_a_block_that_is_not_written_yet_or_by_another_version_is_not_read() -> None:
    block = shared_block()
    assert ServerStats.read_from(block) is None
    ServerStats().move_to(block)
    block[0] += 1
    assert ServerStats.read_from(block) is None


def test_what_a_dead_process_has_not_finished_is_counted_as_aborted() -> None:
    stats = ServerStats()
    stats.block[ACCEPTED] = 10
    stats.count_greeted(24, 0.1, clients=3)
    stats.block[FAILED["reset"]] = 2
    stats.block[REJECTED["rate"]] = 1
    assert stats.unfinished == 4
    assert stats.abort_unfinished() == 4
    assert (stats.failed["aborted"], stats.unfinished, stats.accepted) == (4, 0, 10)
    assert stats.abort_unfinished() == 0


def test_datagrams_that_a_dead_process_had_not_finished_are_aborted() -> None:
    stats = ServerStats()
    stats.count_datagrams("received", 5)
    stats.count_datagrams("receive_errors", 9)
    for name in ("greeted", "failed_unsent", "rejected_loop"):
        stats.count_datagrams(name)
    assert stats.abort_unfinished() == 0  # connections
    assert stats.datagrams["failed_aborted"] == 2
    stats.abort_unfinished()
    assert stats.datagrams["failed_aborted"] == 2

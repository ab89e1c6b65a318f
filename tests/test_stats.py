"""Counters of a server: every class of failure is there from the start, and none is shared."""

from __future__ import annotations

import dataclasses

from greeter import ServerStats
from greeter.stats import FAILURES, REJECTIONS


def test_everything_starts_at_zero() -> None:
    stats = ServerStats()
    assert stats.failed == dict.fromkeys(FAILURES, 0)
    assert stats.rejected == dict.fromkeys(REJECTIONS, 0)
    for field in dataclasses.fields(stats):
        if field.type == "int":
            assert getattr(stats, field.name) == 0
    assert not any(stats.greeting_time.counts)


def test_two_servers_count_for_themselves() -> None:
    one, two = ServerStats(), ServerStats()
    one.accepted += 1
    one.failed["reset"] += 1
    one.rejected["rate"] += 1
    assert two == ServerStats()


def test_every_class_and_every_counter_says_what_it_counts() -> None:
    assert all(FAILURES.values())
    assert all(REJECTIONS.values())
    assert not FAILURES.keys() & REJECTIONS.keys()
    for field in dataclasses.fields(ServerStats):
        assert f"``{field.name}``" in (ServerStats.__doc__ or "")

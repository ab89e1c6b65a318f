"""Counters as a value: addition, JSON, and sums that never decrease while processes start and exit."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greeter import ServerStats
from greeter.core.stats import ACCEPTED, BOUNDS, FAILED, LatencyHistogram
from greeter.service.snapshot import AggregateStats, Counters

COUNT = st.integers(0, 10**12)
BY_NAME = st.dictionaries(st.sampled_from(["reset", "tls", "rate"]), COUNT)
BUCKETS = st.builds(
    LatencyHistogram, st.lists(COUNT, min_size=len(BOUNDS) + 1, max_size=len(BOUNDS) + 1), micros=COUNT
)
SNAPSHOT = st.builds(
    Counters,
    **dict.fromkeys(("accepted", "greeted", "bytes_sent", "drains", "worker_restarts"), COUNT),
    **dict.fromkeys(("linger_timeouts", "accept_errors", "open", "lingering"), COUNT),
    **dict.fromkeys(("failed", "rejected", "reloads"), BY_NAME),
    greeting_time=BUCKETS,
    certificate_expiry=st.none() | st.floats(0, 1e11),
)
GAUGES = ("open", "lingering", "certificate_expiry")
modestly = settings(max_examples=50)


def counters(snapshot: Counters) -> dict[str, int]:
    """Every counter under a unique name."""
    found: dict[str, int] = {}
    for name, value in dataclasses.asdict(snapshot).items():
        if name == "greeting_time":
            found |= {f"time {place}": count for place, count in enumerate(value["counts"])}
            found["time micros"] = value["micros"]
        elif isinstance(value, dict):
            found |= {f"{name} {key}": count for key, count in value.items()}
        elif name not in GAUGES:
            found[name] = value
    return found


# -- snapshots -------------------------------------------------------------------------------------------


def test_every_counter_of_a_server_is_a_field() -> None:
    names = {each.name for each in dataclasses.fields(Counters)}
    public = {name for name in vars(ServerStats) if not name.startswith("_")}
    methods = {name for name in public if callable(getattr(ServerStats(), name))}
    assert public - methods - {"block", "unfinished", "datagram_rejections"} <= names


def test_every_field_is_documented() -> None:
    for each in dataclasses.fields(Counters):
        assert f"``{each.name}``" in (Counters.__doc__ or "")


def test_a_snapshot_of_a_server_is_a_copy() -> None:
    stats = ServerStats()
    stats.open = 1
    stats.block[ACCEPTED] = 3
    stats.block[FAILED["reset"]] = 1
    stats.count_greeted(24, 0.1)
    snapshot = Counters.of(stats, drains=1, open=7)
    stats.block[FAILED["reset"]] = 9
    stats.count_greeted(24, 0.1)
    assert (snapshot.accepted, snapshot.greeted, snapshot.failed["reset"]) == (3, 1, 1)
    assert (snapshot.drains, snapshot.open, snapshot.certificate_expiry) == (1, 7, None)
    assert sum(snapshot.greeting_time.counts) == 1


@modestly
@given(SNAPSHOT)
def test_a_snapshot_survives_json(snapshot: Counters) -> None:
    assert Counters.from_json(json.loads(json.dumps(snapshot.to_json()))) == snapshot


@modestly
@given(SNAPSHOT, SNAPSHOT, SNAPSHOT)
def test_addition_is_commutative_and_associative(a: Counters, b: Counters, c: Counters) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + Counters() == a


def test_a_sum_has_the_earliest_certificate_expiry() -> None:
    one = Counters(greeted=2, open=1, failed={"reset": 1}, certificate_expiry=200.0)
    two = Counters(greeted=3, open=4, failed={"reset": 1, "tls": 5}, certificate_expiry=100.0)
    assert one + two == Counters(greeted=5, open=5, failed={"reset": 2, "tls": 5}, certificate_expiry=100.0)


@pytest.mark.parametrize(
    "extra", [{"invented_later": 1}, {"greeting_time": {"counts": [1, 2, 3], "micros": 9}}, {}]
)
def test_unknown_fields_of_another_version_are_ignored(extra: dict[str, Any]) -> None:
    assert Counters.from_json({"greeted": 5, **extra}) == Counters(greeted=5)


# -- totals ----------------------------------------------------------------------------------------------


def test_an_exited_worker_keeps_its_counters_and_loses_its_gauges() -> None:
    totals = AggregateStats()
    gauges: dict[str, Any] = {
        "lingering": 3,
        "max_connections": 9,
        "accepting": 1,
        "certificate_expiry": 50.0,
    }
    totals.update(1, Counters(greeted=10, open=4, **gauges))
    totals.update(2, Counters(greeted=5, open=1))
    assert totals.total() == Counters(greeted=15, open=5, **gauges)
    totals.retire(1)
    totals.retire("a process without a report")
    assert totals.total() == Counters(greeted=15, open=1)
    totals.update(3, Counters(greeted=1))
    totals.update(3, Counters(greeted=2))
    assert totals.total() == Counters(greeted=17, open=1)
    assert AggregateStats().total() == Counters()


@modestly
@given(st.lists(st.tuples(st.integers(0, 3), st.none() | SNAPSHOT), max_size=12))
def test_no_total_decreases(events: list[tuple[int, Counters | None]]) -> None:
    totals = AggregateStats()
    counted: dict[int, Counters] = {}  # what each process has counted since its start
    before = counters(totals.total())
    for process, more in events:
        if more is None:
            totals.retire(process)
            counted.pop(process, None)
        else:
            counted[process] = counted.get(process, Counters()) + more
            totals.update(process, counted[process])
        after = counters(totals.total())
        assert all(after[name] >= count for name, count in before.items())
        assert totals.total().open == sum(each.open for each in counted.values())
        before = after

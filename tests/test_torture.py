"""The torture harness itself: what it draws, how it shrinks, and what it forgives."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from tests.torture.__main__ import numbers
from tests.torture.drawing import draw
from tests.torture.evidence import Evidence
from tests.torture.excuses import judge_lost
from tests.torture.invariants import problems
from tests.torture.schedule import Event, Schedule, ServiceSpec
from tests.torture.shrinking import candidates, shrink, weight
from tests.torture.visits import Visit

SEEDS = st.integers(0, 10**6)
STOP = Event(0, "stop", "parent")
LAST_LINE = b'{"level": "info", "message": "Stopped: %d greeted of %d accepted, %d failed"}\n'


# -- drawing -----------------------------------------------------------------------------------------------


def test_a_seed_draws_the_same_schedule_whatever_the_hash_seed() -> None:
    code = "from tests.torture.drawing import draw; print([draw(seed) for seed in range(50)])"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {(f"{[draw(seed) for seed in range(50)]}\n").encode()}


@given(SEEDS)
def test_a_drawn_schedule_goes_together(seed: int) -> None:
    schedule = draw(seed)
    service, (*events, stop) = schedule.service, schedule.events
    assert stop.do == "stop"
    assert "stop" not in [event.do for event in events]
    if "udp" in service.endpoints:
        assert not service.tls
        assert not service.proxy
    if (service.loop, service.path) == ("uvloop", "streams"):  # which loses clients there, as documented
        errors = [event.error for event in events if event.what == "accept"]
        assert not {"EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"} & {*errors}
        assert "descriptors" not in [event.do for event in events]
    assert Schedule.from_json(schedule.to_json()) == schedule


@pytest.mark.parametrize(("text", "found"), [("3", [3]), ("1-3", [1, 2, 3]), ("1,5-6", [1, 5, 6])])
def test_numbers_are_ranges(text: str, found: list[int]) -> None:
    assert numbers(text) == found


# -- shrinking ---------------------------------------------------------------------------------------------


@given(SEEDS)
def test_every_candidate_is_simpler_and_keeps_the_stop(seed: int) -> None:
    schedule = draw(seed)
    for candidate in candidates(schedule):
        assert weight(candidate) < weight(schedule)
        assert candidate.events[-1].do == "stop"


@given(SEEDS, st.integers(1, 3), st.data())
def test_a_failure_shrinks_to_the_events_that_it_needs(seed: int, jobs: int, data: st.DataObject) -> None:
    schedule = draw(seed)
    needed = data.draw(st.sets(st.integers(0, len(schedule.events) - 2), max_size=3))
    # An event is told from its equals by its place.
    events = [replace(event, error=str(place)) for place, event in enumerate(schedule.events)]
    schedule = replace(schedule, events=tuple(events))

    async def fails(candidate: Schedule) -> bool:
        return {str(place) for place in needed} <= {event.error for event in candidate.events}

    shortest = asyncio.run(shrink(schedule, fails, 60.0, jobs))
    assert [event.error for event in shortest.events[:-1]] == [str(place) for place in sorted(needed)]
    assert shortest.service == ServiceSpec()
    assert {(event.after, event.count) for event in shortest.events} == {(0, 1)}


def test_shrinking_ends_when_its_time_is_over() -> None:
    async def fails(_: Schedule) -> bool:
        raise AssertionError("nothing is played")

    schedule = draw(1)
    assert asyncio.run(shrink(schedule, fails, 0.0)) == schedule


def test_events_are_left_out_by_number_but_not_the_stop() -> None:
    events = (Event(0, "reload"), Event(1, "reload"), STOP)
    schedule = Schedule(ServiceSpec(), events)
    assert schedule.without(frozenset([1, 3])).events == (events[1], STOP)


# -- visits ------------------------------------------------------------------------------------------------


def test_a_visit_is_connecting_between_its_begin_and_its_connection() -> None:
    visit = Visit("read", "tcp")
    assert not visit.connecting  # its task has not run
    visit.began = 100.0
    assert visit.connecting
    visit.ended = 101.0
    assert not visit.connecting  # refused
    visit.connected = 100.5
    assert not visit.connecting


# -- excuses -----------------------------------------------------------------------------------------------


def lost(began: float, ended: float, how: str = "ConnectionResetError(104)", received: int = 0) -> Visit:
    return Visit("read", "tcp", began, began, ended, "lost", how, received)


def evidence(
    *visits: Visit, service: ServiceSpec | None = None, greeted: int = 0, failed: int = 0
) -> Evidence:
    """What is seen of a run without faults, which begins at 100 s and is stopped at 200 s."""
    schedule = Schedule(service or ServiceSpec(), (STOP,))
    line = LAST_LINE % (greeted, greeted + failed, failed)
    return Evidence(schedule, [*visits], stopped=200.0, code=0, log=line, seconds=100.0)


def lost_without_excuse(found: Evidence) -> list[Visit]:
    return judge_lost(found)[0]


def test_nothing_excuses_a_client_that_is_lost_without_a_fault() -> None:
    visit = lost(100, 101)
    assert lost_without_excuse(evidence(visit, failed=1)) == [visit]


def test_when_all_processes_are_killed_the_accept_queue_is_lost() -> None:
    before, after = lost(148, 149), lost(149, 151)
    found = evidence(before, after)
    found.all_killed = 150.0
    assert lost_without_excuse(found) == [before]


def test_a_killed_worker_excuses_as_many_clients_as_it_had() -> None:
    found = evidence(lost(100, 101), lost(100, 101), lost(100, 100.4), lost(100.6, 101), failed=4)
    found.kills = [(100.5, 1)]
    assert len(lost_without_excuse(found)) == 3
    found.kills = [(100.5, 4)]
    assert len(lost_without_excuse(found)) == 2, "two were not there when it was killed"


@pytest.mark.parametrize(
    ("event", "left"),
    [
        (Event(0, "fault", "send", error="EPIPE"), 1),
        (Event(0, "fault", "send", error="EAGAIN"), 2),
        (Event(0, "fault", "send", error="EPIPE", part=10), 2),
        (Event(0, "fault", "accept", error="EMFILE"), 2),
    ],
    ids=str,
)
def test_a_call_that_fails_for_good_excuses_one_client(event: Event, left: int) -> None:
    found = evidence(lost(100, 101), lost(100, 101), failed=2)
    found.faults = [(100.5, event, 1)]
    assert len(lost_without_excuse(found)) == left


@pytest.mark.parametrize(
    ("service", "excused", "visit"),
    [
        (ServiceSpec(greet_timeout=0.6), True, lost(100, 100.7)),
        (ServiceSpec(greet_timeout=0.6), False, lost(100, 100.5)),
        (ServiceSpec(linger_timeout=0.3), True, lost(100, 100.4)),
        (ServiceSpec(linger_timeout=0.3), False, lost(100, 100.4, "an end after 3 of 24 bytes", 3)),
        (ServiceSpec(drain_timeout=0.5), True, lost(199, 200.6)),
        (ServiceSpec(drain_timeout=0.5), False, lost(199, 200.4)),
        (ServiceSpec(greeting="flaky"), True, lost(100, 100.1, "an end after 0 of 24 bytes: b''")),
        (ServiceSpec(greeting="flaky"), False, lost(100, 100.1)),
    ],
)
def test_an_option_excuses_what_it_is_for(service: ServiceSpec, excused: bool, visit: Visit) -> None:
    assert (lost_without_excuse(evidence(visit, service=service, failed=1)) == []) is excused


def test_an_excuse_is_left_to_the_client_that_has_no_other() -> None:
    found = evidence(lost(100, 101), lost(100, 100.8), failed=2)
    found.kills = [(100.5, 1)]
    found.faults = [(100.9, Event(0, "fault", "recv", error="ECONNRESET"), 1)]
    assert lost_without_excuse(found) == []


# -- invariants --------------------------------------------------------------------------------------------


def test_a_run_without_faults_has_no_problems() -> None:
    assert problems(evidence(Visit("read", "tcp", 100, 100, 101, "greeted"), greeted=1)) == []


@pytest.mark.parametrize(
    ("invariant", "changes"),
    [
        ("clients", {"visits": [lost(100, 101)]}),
        ("clients", {"visits": [Visit("read", "tcp", 100, 100)]}),
        ("refused", {"visits": [Visit("read", "tcp", 100, 0.0, 101, "refused")]}),
        ("exit", {"code": None}),
        ("exit", {"code": 1}),
        ("exit", {"code": -signal.SIGKILL}),
        ("exit", {"left": 1}),
        ("exit", {"socket_file_left": True}),
        ("counters", {"log": b""}),
        ("counters", {"log": LAST_LINE % (1, 3, 1)}),
        ("counters", {"log": LAST_LINE % (1, 1, 0)}),  # but no client came
        ("counters", {"visits": [Visit("read", "tcp", 100, 100, 101, "greeted")]}),  # but it was not counted
        ("log", {"log": b"Traceback\n" + LAST_LINE % (0, 0, 0)}),
        ("log", {"log": b'{"traceback": "..."}\n' + LAST_LINE % (0, 0, 0)}),
        ("log", {"log": b"{}\n" * 3000 + LAST_LINE % (0, 0, 0)}),
    ],
)
def test_each_invariant_can_fail(invariant: str, changes: dict[str, object]) -> None:
    found = replace(evidence(), **changes)  # type: ignore[arg-type]  # one of its fields each
    assert {problem.invariant for problem in problems(found)} == {invariant}


def test_a_killed_parent_is_not_stopped_in_order() -> None:
    found = replace(evidence(), parent_killed=True, code=-signal.SIGKILL, log=b"", socket_file_left=True)
    assert problems(found) == []
    assert [problem.invariant for problem in problems(replace(found, left=1))] == ["exit"]

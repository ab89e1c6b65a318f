"""Guests who wait, in virtual time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from greeter.waiting import Waiting

from tests.server.test_lingering import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def late() -> list[str]:
    return []


@pytest.fixture
def waiting(late: list[str]) -> tuple[Any, VirtualLoop]:
    """A table of guests that are texts, with a patience of 2 s."""
    clock: Any = VirtualLoop()
    return Waiting(clock, 2.0, late.append), clock


def test_a_thousand_guests_have_one_timer(waiting: tuple[Any, VirtualLoop], late: list[str]) -> None:
    table, clock = waiting
    names = [str(number) for number in range(1000)]
    for name in names:
        table.admit(name)
        clock.now += 0.001
        assert len(clock.timers) == 1
    for name in names[:-1]:
        assert table.discard(name)
    assert len(clock.timers) == 1
    assert table.discard(names[-1])
    assert clock.timers == []  # nobody waits: nothing wakes up
    assert not table.discard(names[-1])
    clock.advance(10)
    assert late == []


def test_each_guest_has_its_own_deadline(waiting: tuple[Any, VirtualLoop], late: list[str]) -> None:
    table, clock = waiting
    for name in "abc":
        table.admit(name)
        clock.now += 0.5
    table.discard("b")
    clock.advance(0.499)
    assert late == []
    clock.advance(0.001)
    assert late == ["a"]
    clock.advance(0.999)
    assert (late, list(table)) == (["a"], ["c"])
    clock.advance(0.001)
    assert (late, list(table), clock.timers) == (["a", "c"], [], [])


def test_deadlines_a_moment_apart_are_one_wake_up(waiting: tuple[Any, VirtualLoop], late: list[str]) -> None:
    table, clock = waiting
    for name in "abc":
        table.admit(name)
        clock.now += 0.0009
    clock.advance(10)
    assert late == ["a", "b", "c"]
    assert len(clock.fired) == 1


def test_whoever_is_late_may_be_admitted_anew(waiting: tuple[Any, VirtualLoop], late: list[str]) -> None:
    table, clock = waiting
    again: Callable[[str], None] = table.admit

    def on_late(name: str) -> None:
        late.append(name)
        again(name)

    table._on_late = on_late
    table.admit("a")
    clock.advance(6.1)
    assert late == ["a", "a", "a"]
    assert len(clock.timers) == 1

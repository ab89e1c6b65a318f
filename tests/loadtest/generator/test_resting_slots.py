from __future__ import annotations

from math import inf

import pytest

from greeter.loadtest.generator.resting_slots import RestingSlots


def test_a_slot_rests_longer_each_time_up_to_a_tenth_of_a_second() -> None:
    slots, now, rests = RestingSlots(), 0.0, []
    refusals = 0
    for _ in range(12):
        slots.add(refusals, now)
        rests.append(slots.first() - now)
        now = slots.first()
        assert slots.wake(now) == 1
        refusals = slots.rested.pop()
    assert rests == pytest.approx([0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, *[0.1] * 5])
    assert refusals == 12


def test_slots_wake_in_the_order_of_their_ends() -> None:
    slots = RestingSlots()
    slots.add(5, 0.0)  # 32 ms
    slots.add(0, 0.001)  # 1 ms
    assert slots.count == 2
    assert slots.first() == pytest.approx(0.002)
    assert slots.wake(0.0015) == 0
    assert slots.wake(0.01) == 1
    assert slots.rested == [1]
    assert slots.wake(inf) == 1
    assert (slots.count, slots.first()) == (0, inf)

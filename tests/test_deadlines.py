"""Deadlines against the plainest model there is: a list, sorted by the time of its entries."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from greeter.deadlines import Deadlines


def test_first_in_is_first_due() -> None:
    waiting: Deadlines[str] = Deadlines()
    assert waiting.first() is None
    assert not waiting
    for deadline, name in enumerate("abc", 10):
        waiting.add(name, deadline)
    assert (list(waiting), len(waiting), waiting.first()) == (["a", "b", "c"], 3, 10)
    assert "b" in waiting
    assert waiting.expire(9.99) == []
    assert waiting.expire(11) == ["a", "b"]
    assert "b" not in waiting
    assert waiting.first() == 12
    assert waiting.expire(float("inf")) == ["c"]
    assert waiting.first() is None


def test_discard_says_whether_it_was_there() -> None:
    waiting: Deadlines[str] = Deadlines()
    waiting.add("a", 0.0)
    assert waiting.discard("a")
    assert not waiting.discard("a")
    assert waiting.expire(1) == []


def test_one_that_is_added_again_does_not_hold_up_the_others() -> None:
    waiting: Deadlines[str] = Deadlines()
    waiting.add("a", 1)
    waiting.add("b", 2)
    waiting.add("a", 3)
    assert (len(waiting), waiting.first()) == (2, 2)
    assert waiting.expire(2) == ["b"]
    assert waiting.expire(3) == ["a"]


class AgainstAList(RuleBasedStateMachine):
    """Any sequence of calls, with a clock that only goes forward."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: Deadlines[int] = Deadlines()
        self.model: list[tuple[float, int, int]] = []  # deadline, how many were added before, item
        self.now = 0.0
        self.added = 0

    @rule(item=st.integers(0, 9), seconds=st.sampled_from([0.0, 0.25, 5.0]))
    def add(self, item: int, seconds: float) -> None:
        self.now += seconds
        self.model = [entry for entry in self.model if entry[2] != item]
        self.model.append((self.now + 2, self.added, item))
        self.added += 1
        self.waiting.add(item, self.now + 2)

    @rule(item=st.integers(0, 9))
    def discard(self, item: int) -> None:
        here = [entry for entry in self.model if entry[2] == item]
        assert self.waiting.discard(item) == bool(here)
        self.model = [entry for entry in self.model if entry[2] != item]

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]))
    def expire(self, seconds: float) -> None:
        self.now += seconds
        late = [entry for entry in sorted(self.model) if entry[0] <= self.now]
        assert self.waiting.expire(self.now) == [item for _, _, item in late]
        self.model = [entry for entry in self.model if entry[0] > self.now]

    @invariant()
    def they_agree(self) -> None:
        order = sorted(self.model)
        assert list(self.waiting) == [item for _, _, item in order]
        assert len(self.waiting) == len(order)
        assert self.waiting.first() == (order[0][0] if order else None)
        assert all((item in self.waiting) == any(item == e[2] for e in order) for item in range(10))


TestAgainstAList = AgainstAList.TestCase
TestAgainstAList.settings = settings(deadline=None, max_examples=50, stateful_step_count=30)

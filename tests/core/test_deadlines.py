"""Deadlines: tables, and a comparison with a sorted list."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from greeter.core.deadlines import Deadlines

# Multiples of a power of two: sums and differences of them are exact.
TIMES = st.integers(0, 64).map(lambda ticks: ticks / 8)


def test_items_are_due_in_the_order_in_which_they_were_added() -> None:
    table: Deadlines[str] = Deadlines()
    assert table.first() is None
    assert not table
    for deadline, name in enumerate("abc", 10):
        table.add(name, deadline)
    assert (list(table), len(table), table.first()) == (["a", "b", "c"], 3, 10)
    assert "b" in table
    assert table.expire(9.99) == []
    assert table.expire(11) == ["a", "b"]
    assert "b" not in table
    assert table.first() == 12
    assert table.expire(float("inf")) == ["c"]
    assert table.first() is None


def test_due_leaves_the_items_in_the_table() -> None:
    table: Deadlines[str] = Deadlines()
    for deadline, name in enumerate("abc", 10):
        table.add(name, deadline)
    assert table.due(9.99) == []
    assert table.due(11) == ["a", "b"]
    assert (list(table), table.first()) == (["a", "b", "c"], 10)
    assert table.expire(11) == ["a", "b"]
    assert table.due(11) == []


def test_a_limit_leaves_the_later_ones_in_the_table() -> None:
    table: Deadlines[str] = Deadlines()
    for deadline, name in enumerate("abc", 10):
        table.add(name, deadline)
    assert table.due(11, 1) == ["a"]
    assert table.expire(12, 2) == ["a", "b"]
    assert table.expire(12, 2) == ["c"]


def test_discard_returns_whether_the_item_was_there() -> None:
    table: Deadlines[str] = Deadlines()
    table.add("a", 0.0)
    assert table.discard("a")
    assert not table.discard("a")
    assert table.expire(1) == []


def test_an_item_that_is_added_again_goes_to_the_end() -> None:
    table: Deadlines[str] = Deadlines()
    table.add("a", 1)
    table.add("b", 2)
    table.add("a", 3)
    assert (len(table), table.first()) == (2, 2)
    assert table.expire(2) == ["b"]
    assert table.expire(3) == ["a"]


def test_postpone_moves_passed_deadlines_and_keeps_the_order() -> None:
    table: Deadlines[str] = Deadlines()
    for deadline, name in enumerate("abcd", 10):
        table.add(name, deadline)
    table.postpone(11, 1.5)  # a: 11.5, b: 12.5
    assert (list(table), table.first()) == (["a", "c", "b", "d"], 11.5)
    assert table.expire(12.4) == ["a", "c"]
    assert table.expire(12.5) == ["b"]


def test_postpone_moves_no_deadline_beyond_the_latest() -> None:
    """Items can then still be added at the end."""
    table: Deadlines[str] = Deadlines()
    for deadline, name in enumerate("abc", 10):
        table.add(name, deadline)
    table.postpone(11, 5, latest=13)
    table.add("d", 13)
    assert list(table) == ["c", "a", "b", "d"]
    assert table.expire(12.9) == ["c"]
    assert table.expire(13) == ["a", "b", "d"]


def test_postpone_moves_a_deadline_once() -> None:
    table: Deadlines[str] = Deadlines()
    table.add("a", 10)
    table.postpone(10, 1)
    table.postpone(20, 1)
    assert table.first() == 11


def test_an_item_that_was_removed_or_added_again_can_be_postponed_again() -> None:
    table: Deadlines[str] = Deadlines()
    table.add("a", 10)
    table.add("b", 10)
    table.postpone(10, 1)
    assert table.expire(11) == ["a", "b"]
    table.add("a", 20)
    table.postpone(20, 1)
    assert table.first() == 21
    table.add("a", 30)  # without having been removed
    table.postpone(30, 1)
    assert table.first() == 31


@given(
    deadlines=st.lists(TIMES, max_size=8).map(sorted),
    pauses=st.lists(st.tuples(TIMES, TIMES), max_size=4).map(sorted),
)
def test_postpone_against_a_dict(deadlines: list[float], pauses: list[tuple[float, float]]) -> None:
    """Each pause is a time and the seconds by which the deadlines at or before it are moved."""
    table: Deadlines[int] = Deadlines()
    for item, deadline in enumerate(deadlines):
        table.add(item, deadline)
    expected = dict(enumerate(deadlines))
    moved: set[int] = set()
    for now, seconds in pauses:
        table.postpone(now, seconds)
        for item, deadline in expected.items():
            if deadline <= now and item not in moved:
                moved.add(item)
                expected[item] = deadline + seconds
        assert len(table) == len(expected)
        assert [expected[item] for item in table] == sorted(expected.values())
    for deadline in sorted(set(expected.values())):
        assert table.first() == deadline
        for item in table.expire(deadline):
            assert expected.pop(item) == deadline
    assert not expected


class DeadlinesMachine(RuleBasedStateMachine):
    """Any sequence of calls, with a monotonic clock."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Deadlines[int] = Deadlines()
        self.model: list[tuple[float, int]] = []  # deadline and item, in order
        self.postponed: set[int] = set()
        self.now = 0.0

    def remove(self, items: set[int]) -> None:
        self.model = [entry for entry in self.model if entry[1] not in items]
        self.postponed -= items

    @rule(item=st.integers(0, 9), seconds=st.sampled_from([0.0, 0.25, 5.0]))
    def add(self, item: int, seconds: float) -> None:
        self.now += seconds
        self.remove({item})
        self.model.append((self.now + 2, item))
        self.table.add(item, self.now + 2)

    @rule(item=st.integers(0, 9))
    def discard(self, item: int) -> None:
        assert self.table.discard(item) == any(item == entry[1] for entry in self.model)
        self.remove({item})

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]))
    def expire(self, seconds: float) -> None:
        self.now += seconds
        due = [item for deadline, item in self.model if deadline <= self.now]
        assert self.table.due(self.now) == due
        assert self.table.expire(self.now) == due
        self.remove(set(due))

    @rule(seconds=st.sampled_from([0.5, 2.5, 8.0]))
    def postpone(self, seconds: float) -> None:
        self.now += seconds
        latest = self.now + 2  # the deadline of an item added now
        self.table.postpone(self.now, seconds, latest)
        for index, (deadline, item) in enumerate(self.model):
            if deadline <= self.now and item not in self.postponed:
                self.postponed.add(item)
                self.model[index] = (min(deadline + seconds, latest), item)
        self.model.sort(key=lambda entry: entry[0])

    @invariant()
    def agrees_with_the_model(self) -> None:
        items = [item for _, item in self.model]
        assert list(self.table) == items
        assert len(self.table) == len(items)
        assert self.table.first() == (self.model[0][0] if items else None)
        assert all((item in self.table) == (item in items) for item in range(10))
        assert self.table._postponed <= set(items)  # bounded by the items


TestDeadlinesMachine = DeadlinesMachine.TestCase
TestDeadlinesMachine.settings = settings(max_examples=50, stateful_step_count=30)

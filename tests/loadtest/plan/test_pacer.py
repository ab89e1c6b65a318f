"""Schedules in virtual time: every figure is computed, none is measured."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greeter.loadtest.plan.pacer import ClosedLoop, OpenLoop, Stage


def constant(
    rate: float, duration: float, *, index: int = 0, workers: int = 1, limit: int | None = None
) -> OpenLoop:
    return OpenLoop([Stage(duration, rate)], rate, limit=limit, index=index, workers=workers)


def arrivals(pacer: OpenLoop) -> list[float]:
    """Run a schedule in virtual time, in which each wait takes exactly as long as it should."""
    now = 0.0
    moments: list[float] = []
    while True:
        wait, stop = pacer.pace(now, len(moments))
        if stop:
            return moments
        if wait > 0:
            now += wait
        else:
            moments.append(now + wait)


def test_a_closed_loop_is_due_at_once_until_its_count_or_its_duration() -> None:
    pacer = ClosedLoop(total=3, length=10.0)
    assert pacer.pace(0.0, 0) == (0.0, False)
    assert pacer.pace(9.999, 2) == (0.0, False)
    assert pacer.pace(0.0, 3) == (0.0, True)
    assert pacer.pace(10.0, 0) == (0.0, True)
    assert ClosedLoop().pace(1e9, 10**9) == (0.0, False)
    assert pacer.pace(-0.5, 0) == (0.5, False)


def test_a_constant_rate_has_the_exact_number_of_arrivals() -> None:
    pacer = constant(400, 10)
    assert pacer.total == 4000
    moments = arrivals(pacer)
    assert len(moments) == 4000
    assert moments == pytest.approx([k / 400 for k in range(4000)], abs=1e-9)


def test_a_late_call_returns_when_the_arrival_was_due() -> None:
    pacer = constant(100, 10)
    wait, stop = pacer.pace(0.5, 10)
    assert wait == pytest.approx(-0.4)
    assert not stop
    # A stall of half a second makes 50 arrivals overdue, each at its own time.
    overdue = [pacer.pace(0.5, k)[0] for k in range(60)]
    assert sum(wait <= 1e-12 for wait in overdue) == 51
    assert [0.5 + wait for wait in overdue] == pytest.approx([k / 100 for k in range(60)])


def test_a_schedule_ends_with_arrivals_not_started() -> None:
    pacer = constant(100, 10)
    assert not pacer.pace(10.0999, 400)[1], "a hiccup of the machine does not cut off the last arrivals"
    assert pacer.pace(10.1, 400)[1]
    assert [pacer.due(elapsed) for elapsed in (0.0, 0.005, 5.0, 10.1)] == [1, 1, 501, 1000]
    assert (pacer.length, pacer.end) == (10.0, 10.1)


@pytest.mark.parametrize(
    ("rate", "duration", "total"),
    [
        (1.1, 10, 11),
        (0.1, 30, 3),
        (400, 10, 4000),
        (3, 1 / 3, 1),
        (0.5, 1, 1),
        (1000, 0.0005, 1),
        (333.3, 3, 1000),
    ],
)
def test_totals_are_exact_despite_floats(rate: float, duration: float, total: int) -> None:
    # An arrival due at the end of the schedule is not part of it: 1.1/s over 10 s is 0 … 9.09 s, 11 arrivals.
    assert constant(rate, duration).total == total


def test_a_limit_ends_the_schedule() -> None:
    pacer = constant(10, 100.0, limit=7)
    assert pacer.total == 7
    assert pacer.length == pytest.approx(0.7)
    assert arrivals(pacer) == pytest.approx([k / 10 for k in range(7)])
    assert constant(10, 1.0, limit=70).total == 10


def test_the_arrivals_of_a_ramp_are_quadratic() -> None:
    pacer = OpenLoop([Stage(10, 100)])  # from 0 to 100/s: 5 t**2 arrivals after t seconds
    assert pacer.total == 500
    for k in (0, 1, 5, 125, 499):
        assert pacer.arrival(k) == pytest.approx((k / 5) ** 0.5)
    down = OpenLoop([Stage(10, 0)], 100)
    assert down.total == 500
    assert 10 - down.arrival(375) == pytest.approx(5.0)  # half of the time is three quarters of the arrivals


def test_stages_are_carried_out_in_order() -> None:
    # 0 to 100/s in 2 s, hold for 3 s, jump to 10/s for 1 s, nothing for a second, then 10/s again.
    pacer = OpenLoop(
        [
            Stage(2, 100),
            Stage(3, 100),
            Stage(0, 10),
            Stage(1, 10),
            Stage(0, 0),
            Stage(1, 0),
            Stage(0, 10),
            Stage(1, 10),
        ]
    )
    assert pacer.total == 100 + 300 + 10 + 10
    assert pacer.length == 8.0
    assert pacer.arrival(100) == 2.0
    assert pacer.arrival(250) == pytest.approx(3.5)
    assert pacer.arrival(400) == 5.0
    assert pacer.arrival(401) == pytest.approx(5.1)
    assert pacer.arrival(409) == pytest.approx(5.9)
    assert pacer.arrival(410) == 7.0
    assert pacer.arrival(419) == pytest.approx(7.9)


def test_a_rate_of_0_has_no_arrivals() -> None:
    pacer = OpenLoop([Stage(5, 0)])
    assert pacer.total == 0
    assert pacer.pace(0.0, 0) == (0.0, True)


stages = st.lists(
    st.builds(
        Stage,
        st.floats(0, 100).map(lambda x: round(x, 3)),
        st.floats(0, 1000).map(lambda x: round(x, 2)),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60)
@given(stages, st.floats(0, 1000).map(lambda x: round(x, 2)), st.integers(1, 5))
def test_any_schedule_is_monotonic_keeps_its_rate_and_splits_exactly(
    parts: list[Stage], rate: float, workers: int
) -> None:
    pacer = OpenLoop(parts, rate)
    sums, first = Fraction(0), Fraction(repr(rate))
    for stage in parts:
        sums += (first + Fraction(repr(stage.rate))) / 2 * Fraction(repr(stage.duration))
        first = Fraction(repr(stage.rate))
    assert pacer.total - 1 < sums <= pacer.total or pacer.total == sums == 0
    some = range(0, pacer.total, max(1, pacer.total // 200))
    moments = [pacer.arrival(k) for k in some]
    assert moments == sorted(moments)
    assert all(0 <= moment <= pacer.length for moment in moments)
    shares = [OpenLoop(parts, rate, index=index, workers=workers) for index in range(workers)]
    assert sum(share.total for share in shares) == pacer.total
    for k in some:
        assert shares[k % workers].arrival(k // workers) == pacer.arrival(k)


@settings(max_examples=60)
@given(stages, st.floats(1, 1000).map(lambda x: round(x, 2)), st.data())
def test_an_arrival_is_due_when_the_integral_of_the_rate_reaches_it(
    parts: list[Stage], rate: float, data: st.DataObject
) -> None:
    pacer = OpenLoop(parts, rate)
    if not pacer.total:
        return
    k = data.draw(st.integers(0, pacer.total - 1))
    moment = pacer.arrival(k)
    reached, begin, first = 0.0, 0.0, rate
    for stage in parts:
        inside = min(max(moment - begin, 0.0), stage.duration)
        if stage.duration:
            reached += first * inside + (stage.rate - first) / (2 * stage.duration) * inside**2
        begin, first = begin + stage.duration, stage.rate
    assert reached == pytest.approx(k, rel=1e-6, abs=1e-4)

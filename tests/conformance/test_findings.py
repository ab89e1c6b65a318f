"""What is concluded from how clients ended, without a client."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from greeter.conformance.findings import Ending, Experience, Tally, Verdict, judged

endings = st.lists(st.sampled_from(Ending), max_size=30)


def tally(*of: Ending) -> Tally:
    return Tally(Experience(ending, story=((0.0, "connect"), (0.0012, str(ending)))) for ending in of)


@given(endings)
def test_a_service_fails_only_for_what_its_clients_experienced(of: list[Ending]) -> None:
    finding = judged(tally(*of))
    broken = [ending for ending in of if ending not in (Ending.GREETED, Ending.LOCAL)]
    if broken:
        assert finding.verdict is Verdict.FAIL
        assert finding.story
    else:
        assert finding.verdict is (Verdict.UNSURE if Ending.LOCAL in of else Verdict.PASS)
    assert sum(finding.classes.values()) == len(of)


@given(endings)
def test_a_machine_that_was_late_never_makes_a_failure(of: list[Ending]) -> None:
    assert judged(tally(*of), late=True).verdict is not Verdict.FAIL


def test_the_figure_names_what_was_lost_first() -> None:
    assert tally(*[Ending.GREETED] * 4).figure(Ending.GREETED) == "4 of 4 greeted"
    mixed = tally(Ending.RESET, Ending.RESET, Ending.GREETED, Ending.LOST)
    assert mixed.figure(Ending.GREETED) == "2 of 4 reset, 1 lost"
    assert mixed.story(Ending.GREETED) == "0.0 connect · 1.2 reset"


def test_tallies_are_joined() -> None:
    both = tally(Ending.GREETED, Ending.LOST).joined(tally(Ending.LOST))
    assert both.classes == {Ending.GREETED: 1, Ending.LOST: 2}
    assert both.total == 3

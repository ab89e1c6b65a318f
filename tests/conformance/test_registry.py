"""The checks as texts: each has an id that stays, and says why, whence and what to change."""

from __future__ import annotations

import re

import pytest

from greeter.config.check_options import PROFILE_NAMES
from greeter.conformance.applicability import MISSING
from greeter.conformance.checks import CHECKS, DATAGRAM_CHECKS, STREAM_CHECKS
from greeter.conformance.profiles import PROFILES
from greeter.conformance.registry import REGISTERED, Check
from greeter.conformance.text import explanation, listing
from tests.conftest import ROOT

each_check = pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)


def test_every_check_has_its_place() -> None:
    assert CHECKS.keys() == REGISTERED.keys()
    assert (len(STREAM_CHECKS), len(DATAGRAM_CHECKS)) == (32, 12)
    assert all(check.datagrams == (name in DATAGRAM_CHECKS) for name, check in CHECKS.items())


@each_check
def test_a_check_says_why_whence_and_what_to_change(check: Check) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z0-9]+)*", check.id)
    for text in (check.why, check.cause, check.cure):
        assert re.fullmatch(r"[A-Z`].*\.", text), text
    assert not check.title.endswith(".")
    assert check.sources
    assert check.run.__doc__
    assert check.needs <= MISSING.keys()
    # A close with unread data is what TCP prescribes; that clients are lost is the fault.
    assert not re.search(r"violat|RFC", " ".join((check.title, check.why, check.cause, check.cure)))


@each_check
def test_an_explanation_fits_the_terminal(check: Check) -> None:
    lines = "\n".join(explanation(check)).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"{check.id} ({check.severity.value}): the service ")


def test_the_list_names_every_check() -> None:
    lines = list(listing(CHECKS))
    streams, datagrams = (i for i, line in enumerate(lines) if line.startswith("For services of "))
    names = [line.partition(" ")[0].rstrip("!") for line in lines]
    assert names[streams + 1 : datagrams] == list(STREAM_CHECKS)
    assert names[datagrams + 1 : -2] == list(DATAGRAM_CHECKS)
    assert max(map(len, lines)) <= 110


def test_the_table_of_the_documentation_has_every_check() -> None:
    text = (ROOT / "greeter" / "conformance" / "README.md").read_text()
    rows = re.findall(r"^\| `([a-z0-9-]+)`( !)? \| (.*) \| (must|should|info) \| (.*) \|$", text, re.M)
    assert [tuple(row) for row in rows] == [
        (check.id, " !" * check.heavy, check.title, check.severity.value, ", ".join(check.sources))
        for check in CHECKS.values()
    ]


def test_the_profiles_of_the_options_are_those_of_the_checks() -> None:
    assert tuple(PROFILES) == PROFILE_NAMES
    text = (ROOT / "greeter" / "conformance" / "README.md").read_text()
    assert set(PROFILES) <= set(re.findall(r"`(\w+)`", text.partition("| profile |")[2].partition("\n\n")[0]))

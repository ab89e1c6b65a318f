"""A report as text, as JUnit XML, as JSON and as a page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from greeter.conformance.check_report import CheckReport, Result
from greeter.conformance.checks import CHECKS
from greeter.conformance.findings import Finding, Severity, Verdict
from greeter.conformance.junit import junit
from greeter.conformance.text import closing, left_out, line, opening

if TYPE_CHECKING:
    from pathlib import Path

STORY = "0.0 connect · 0.1 sent 18 B · 0.3 got 24 B · 0.3 FIN · 0.4 RST"
HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"


def result(name: str, verdict: Verdict, figure: str = "3 of 3 greeted", *, expected: bool = False) -> Result:
    story = STORY if verdict is Verdict.FAIL else ""
    return Result(CHECKS[name], Finding(verdict, figure, {"greeted": 3}, story), 0.25, expected)


REPORT = CheckReport(
    "127.0.0.1:9999",
    (
        result("greets", Verdict.PASS),
        result("speaks-first", Verdict.FAIL, "44 of 44 reset"),
        result("speaks-much", Verdict.FAIL, "12 of 12 reset", expected=True),
        result("many-open", Verdict.INFO, "500 open"),
        result("burst", Verdict.UNSURE, "not done within 30 s"),
        result("let-go", Verdict.SKIPPED, "left out by --fast"),
        result("wakes", Verdict.SKIPPED, "without --pid"),
        result("stop", Verdict.SKIPPED, "without --pid"),
    ),
    greeting=HOSTILE.encode(),
    started_at="2026-11-26T12:00:00Z",
    duration_s=3.5,
    environment={"greeter": "0.2.0", "kernel": "Linux 6.18", "python": "3.11.7", "sysctl": {}},
)


@pytest.mark.parametrize("verdict", Verdict)
@pytest.mark.parametrize("name", CHECKS)
def test_a_line_fits_80_columns(name: str, verdict: Verdict) -> None:
    for figure in ("", "x" * 200):
        assert len(line(result(name, verdict, figure))) <= 80


def test_a_line_has_mark_figure_severity_and_source() -> None:
    lines = [line(each) for each in REPORT.results]
    assert re.fullmatch(r"✗ speaks-first +44 of 44 reset +must +RFC 9293 3\.6\.1", lines[1])
    assert re.fullmatch(
        r"x speaks-much +12 of 12 reset \(expected to fail\) +should +RFC 9112 9\.6", lines[2]
    )
    assert [each[0] for each in lines] == ["✓", "✗", "x", "i", "?", "-", "-", "-"]


def test_each_failure_has_its_cause_and_cure() -> None:
    text = "\n".join(closing(REPORT, verbose=True))
    assert text.count("Cause: ") == text.count("Cure: ") == 1
    assert "✗ speaks-first (must) is broken\n  Expected: the service greets a client that" in text
    assert "i a figure only" in text
    assert text.endswith("\nLoses clients: 1 of 3 musts are broken.")
    assert list(left_out(REPORT)) == ["- left out by --fast: let-go", "- without --pid: wakes, stop"]
    assert max(map(len, text.splitlines())) <= 80


def test_a_check_that_was_expected_to_fail_and_did_not_has_no_cause() -> None:
    pytest.importorskip("jinja2")
    from greeter.conformance.page import page

    report = replace(REPORT, results=(result("speaks-first", Verdict.PASS, expected=True),))
    for text in ("\n".join(closing(report)), page(report), junit(report).decode()):
        assert "speaks-first was expected to fail, and did not" in text
        assert "Cause" not in text


@pytest.mark.parametrize(("verdict", "begins"), [(Verdict.UNSURE, "? reload: "), (Verdict.FAIL, "  Found: ")])
def test_a_figure_that_does_not_fit_its_line_is_whole_below_the_table(verdict: Verdict, begins: str) -> None:
    figure = "--restart: did not return within 20 s, as far as can be told"
    report = CheckReport("x:1", (result("reload", verdict, figure),))
    assert figure not in line(report.results[0])
    assert begins + figure in list(closing(report))


def test_what_the_service_says_is_escaped_and_short() -> None:
    shown = opening("127.0.0.1:9999", HOSTILE.encode() * 10)
    assert shown.isprintable()
    assert len(shown) <= 80


def test_the_exit_code_is_that_of_the_worst_must() -> None:
    def code(*verdicts: Verdict, strict: bool = False) -> int:
        names = ("greets", "burst", "speaks-much")
        assert CHECKS["speaks-much"].severity is Severity.SHOULD
        results = tuple(result(name, verdict) for name, verdict in zip(names, verdicts, strict=True))
        return CheckReport("x:1", results, strict=strict).exit_code

    good, bad, unsure = Verdict.PASS, Verdict.FAIL, Verdict.UNSURE
    assert code(good, good, good) == 0
    assert code(good, bad, good) == 99
    assert code(unsure, bad, good) == 99
    assert code(good, unsure, bad) == 98
    assert code(good, good, bad) == 0
    assert code(good, good, bad, strict=True) == 99
    assert code(good, good, unsure, strict=True) == 98
    assert CheckReport("x:1", reason="refused").exit_code == 1


def test_junit_is_read_by_a_reader(tmp_path: Path) -> None:
    junitparser = pytest.importorskip("junitparser")
    path = tmp_path / "out.xml"
    path.write_bytes(junit(REPORT))
    (suite,) = junitparser.JUnitXml.fromfile(str(path))
    assert (suite.tests, suite.failures, suite.skipped, suite.errors) == (8, 1, 4, 0)
    cases = {case.name: case for case in suite}
    assert cases["speaks-first"].result[0].message == "44 of 44 reset"
    assert STORY in cases["speaks-first"].result[0].text
    assert cases["burst"].result[0].message == "unsure: not done within 30 s"
    assert not cases["speaks-much"].result


def test_junit_of_a_service_that_never_greeted_is_an_error(tmp_path: Path) -> None:
    junitparser = pytest.importorskip("junitparser")
    path = tmp_path / "out.xml"
    path.write_bytes(junit(CheckReport("x:1", reason="refused \x00 \x1b", duration_s=0.1)))
    (suite,) = junitparser.JUnitXml.fromfile(str(path))
    assert suite.errors == 1


def test_json_is_what_the_schema_says() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    from greeter.conformance.schema import schema

    validator = jsonschema.Draft202012Validator(schema())
    for report in (REPORT, CheckReport("x:1", reason="refused", environment=REPORT.environment)):
        validator.validate(json.loads(json.dumps(report.to_json())))
    wrong = REPORT.to_json() | {"exit_code": "99"}
    assert not validator.is_valid(wrong)


def test_the_page_escapes_what_comes_from_outside() -> None:
    pytest.importorskip("jinja2")
    from greeter.conformance.page import events, page

    text = page(REPORT)
    assert "<script>" not in text
    assert text.count("<svg") == 1
    assert "Loses clients: 1 of 3 musts are broken." in text
    told = events(STORY)
    assert [event.text for event in told if not event.ours] == ["got 24 B", "FIN", "RST"]

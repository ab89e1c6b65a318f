"""A report as JUnit XML, which CI systems show: a test case for each check.

Source: https://github.com/testmoapp/junitxml, the common denominator of the readers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

from greeter.conformance.findings import Verdict

if TYPE_CHECKING:
    from greeter.conformance.check_report import CheckReport


def junit(report: CheckReport) -> bytes:
    """Returns the report as XML. ``unsure`` and ``skipped`` are both skipped there, with their reason."""
    results = report.results
    failed = [result for result in results if result.broken]
    left_out = [
        result
        for result in results
        if not result.broken and result.finding.verdict in (Verdict.SKIPPED, Verdict.UNSURE)
    ]
    counts = {
        "tests": str(max(1, len(results))),
        "failures": str(len(failed)),
        "errors": str(int(bool(report.reason))),
        "skipped": str(len(left_out)),
        "time": f"{report.duration_s:.3f}",
    }
    suites = ElementTree.Element("testsuites", counts)
    attributes = counts | {"name": f"greeter check {report.target}", "timestamp": report.started_at}
    suite = ElementTree.SubElement(suites, "testsuite", attributes)
    if report.reason:
        case = ElementTree.SubElement(suite, "testcase", classname="greeter.check", name="greets", time="0")
        ElementTree.SubElement(case, "error", message=_xml(report.reason))
    for result in results:
        check, finding = result.check, result.finding
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"greeter.check.{check.severity.value}",
            name=check.id,
            time=f"{result.seconds:.3f}",
        )
        if result in left_out:
            ElementTree.SubElement(
                case, "skipped", message=_xml(f"{finding.verdict.value}: {finding.figure}")
            )
        elif result in failed:
            failure = ElementTree.SubElement(case, "failure", message=_xml(finding.figure))
            lines = [result.problem]
            if result.failed:
                lines += [f"Expected: the service {check.title}", f"Why: {check.why}"]
                lines += [f"Cause: {finding.cause or check.cause}", f"Cure: {check.cure}", finding.story]
            failure.text = _xml("\n".join(lines))
    ElementTree.indent(suites)
    document: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _xml(text: str) -> str:
    """Returns ``text`` without the characters that XML 1.0 does not have (section 2.2)."""
    return "".join(
        c if c in "\t\n\r" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" else "�" for c in text
    )

"""The report of a run: every check with what it found, and what that comes to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from greeter.conformance.findings import Finding, Severity, Verdict

if TYPE_CHECKING:
    from greeter.conformance.registry import Check

SCHEMA = 1

# Exit codes; if several apply, the first of 1, 99, 98.
OK, NEVER_GREETED, BROKEN, UNSURE = 0, 1, 99, 98


@dataclass(frozen=True, slots=True)
class Result:
    """One check, and what it found.

    Attributes:
        check: The check.
        finding: What it found.
        seconds: How long it took, in seconds.
        expected: True if it was expected to fail.
        greeting: The greeting as it was learnt until then.
    """

    check: Check
    finding: Finding
    seconds: float = 0.0
    expected: bool = False
    greeting: bytes = b""

    @property
    def broken(self) -> bool:
        """True if it failed and was not expected to, or did not fail and was."""
        if self.expected:
            return self.finding.verdict in (Verdict.PASS, Verdict.INFO)
        return self.failed

    @property
    def failed(self) -> bool:
        """True if the service does not do what the check asks for, so that it has a cause and a cure."""
        return self.finding.verdict is Verdict.FAIL

    @property
    def problem(self) -> str:
        """What is wrong, in a line, if it is broken."""
        if self.expected:
            return f"{self.check.id} was expected to fail, and did not"
        return f"{self.check.id} ({self.check.severity.value}) is broken"


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What ``greeter.check()`` found.

    Attributes:
        target: The endpoint's text.
        results: The checks in the order in which they were listed; empty if the service never greeted.
        greeting: The greeting as it was learnt.
        strict: True if a *should* counts as a *must*.
        reason: Why the service never greeted; "" if it did.
        started_at: The time of the start (ISO 8601).
        duration_s: How long the run took, in seconds.
        environment: The kernel, its settings, and the versions, by name.
        profile: The name of the profile that has set what a client says.
    """

    target: str
    results: tuple[Result, ...] = ()
    greeting: bytes = b""
    strict: bool = False
    reason: str = ""
    started_at: str = ""
    duration_s: float = 0.0
    environment: dict[str, Any] = field(default_factory=dict)
    profile: str = "raw"

    def _musts(self) -> list[Result]:
        counted = (Severity.MUST, Severity.SHOULD) if self.strict else (Severity.MUST,)
        return [
            result
            for result in self.results
            if result.check.severity in counted and result.finding.verdict is not Verdict.SKIPPED
        ]

    @property
    def broken(self) -> list[Result]:
        """The checks that decide the exit code and that the service broke."""
        return [result for result in self._musts() if result.broken]

    @property
    def exit_code(self) -> int:
        """0, 1 (never greeted), 99 (a must is broken) or 98 (a must is unsure)."""
        if self.reason:
            return NEVER_GREETED
        if self.broken:
            return BROKEN
        unsure = any(result.finding.verdict is Verdict.UNSURE for result in self._musts())
        return UNSURE if unsure else OK

    @property
    def headline(self) -> str:
        """The last line: what the run comes to."""
        if self.reason:
            return f"{self.target} never greeted: {self.reason}"
        musts = self._musts()
        word = "musts and shoulds" if self.strict else "musts"
        if broken := self.broken:
            return f"Loses clients: {len(broken)} of {len(musts)} {word} are broken."
        unsure = sum(result.finding.verdict is Verdict.UNSURE for result in musts)
        if unsure:
            return f"No verdict: {unsure} of {len(musts)} {word} are unsure."
        if len(musts) == 1:
            return f"Loses no client that was tried: {musts[0].check.id} is kept."
        return f"Loses no client that was tried: all {len(musts)} {word} are kept."

    def to_json(self) -> dict[str, Any]:
        """Returns the report as JSON, schema version 1."""
        return {
            "schema": SCHEMA,
            "target": self.target,
            "profile": self.profile,
            "started_at": self.started_at,
            "duration_s": round(self.duration_s, 3),
            "greeting": self.greeting.decode(errors="backslashreplace"),
            "strict": self.strict,
            "reason": self.reason,
            "checks": [_as_json(result) for result in self.results],
            "headline": self.headline,
            "exit_code": self.exit_code,
            "environment": self.environment,
        }


def _as_json(result: Result) -> dict[str, Any]:
    check, finding = result.check, result.finding
    return {
        "id": check.id,
        "title": check.title,
        "severity": check.severity.value,
        "verdict": finding.verdict.value,
        "expected_fail": result.expected,
        "figure": finding.figure,
        "classes": finding.classes,
        "seconds": round(result.seconds, 3),
        "why": check.why,
        "sources": list(check.sources),
        "cause": finding.cause or check.cause,
        "cure": check.cure,
        "story": finding.story,
        "data": finding.data,
    }

"""A report as text for a terminal or a pipe: a line for each check, then what is wrong and what to change.

Invariants:

- A line fits 80 columns, as far as its parts allow. What does not fit is the figure's end, which stands below
  the table if it matters.
- Colour only repeats what a mark or a word says.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from greeter.conformance.findings import NOT_ASKED_FOR, Verdict
from greeter.core.escapes import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from greeter.conformance.check_report import CheckReport, Result
    from greeter.conformance.registry import Check

    # Returns a text in a colour of click's, or as it is.
    Paint = Callable[[str, str], str]

WIDTH = 80
MARKS = {
    Verdict.PASS: ("✓", "green"),
    Verdict.FAIL: ("✗", "red"),
    Verdict.INFO: ("i", "cyan"),
    Verdict.SKIPPED: ("-", "bright_black"),
    Verdict.UNSURE: ("?", "yellow"),
}
LEGEND = "✓ kept, ✗ broken, ? no verdict, i a figure only, - does not apply or was not asked for"
# Printed before a run against another machine.
WARNING = (
    "{target} is another machine's: only gentle checks run (--yes runs all). Even those\n"
    "can get this machine's address blocked there, by fail2ban or the like."
)
# What the services are, by whether they answer datagrams.
LISTS = {False: "streams (TCP and Unix sockets)", True: "datagrams (udp:HOST:PORT)"}
_ID, _FIGURE, _SEVERITY = 16, 35, 6


def plain(text: str, _colour: str) -> str:
    """Returns ``text`` without colour."""
    return text


def line(result: Result, paint: Paint = plain) -> str:
    """Returns the line of a check, such as ``✗ speaks-first  44 of 44 reset  must  RFC 9293 3.6.1``."""
    check, finding = result.check, result.finding
    mark, colour = MARKS[finding.verdict]
    if result.expected:
        mark, colour = ("✗", "red") if result.broken else ("x", "yellow")
    source = f"  {check.sources[0]}" if finding.verdict is Verdict.FAIL else ""
    severity = "" if finding.verdict is Verdict.SKIPPED else check.severity.value
    figure = finding.figure + " (expected to fail)" * result.expected
    if len(figure) > _FIGURE:
        figure = figure[: _FIGURE - 1] + "…"
    row = f"{paint(mark, colour)} {check.id:<{_ID}} {figure:<{_FIGURE}}  {severity:<{_SEVERITY}}{source}"
    return row.rstrip()


def story(result: Result) -> str:
    """Returns what one client experienced, for ``-v``; "" if there is none."""
    return _wrapped(f"one client, in ms: {result.finding.story}", "    ") if result.finding.story else ""


def closing(report: CheckReport, paint: Paint = plain, *, verbose: bool = False) -> Iterator[str]:
    """Yields the lines behind the table: what was left out, cause and cure of each failure, the verdict."""
    yield from left_out(report)
    for result in report.results:
        if result.finding.verdict in (Verdict.UNSURE, Verdict.INFO) and _is_cut(result):
            mark, colour = MARKS[result.finding.verdict]
            yield _wrapped(f"{paint(mark, colour)} {result.check.id}: {result.finding.figure}", "")
    for result in report.results:
        check, finding = result.check, result.finding
        if not result.broken:
            continue
        yield ""
        yield f"{paint('✗', 'red')} {result.problem}"
        if result.failed:
            yield _wrapped(f"Expected: the service {check.title}", "  ")
            if _is_cut(result):
                yield _wrapped(f"Found: {finding.figure}", "  ")
            yield _wrapped(f"Why: {check.why}", "  ")
            yield _wrapped(f"Cause: {finding.cause or check.cause}", "  ")
            yield _wrapped(f"Cure: {check.cure}", "  ")
            yield _wrapped(f"Source: {', '.join(check.sources)}", "  ")
            if verbose and finding.story:
                yield story(result)
    if report.results:
        yield ""
        yield _wrapped(f"{LEGEND}. What a check does: greeter check --explain ID", "")
    yield paint(report.headline, "red" if report.exit_code else "green")


def left_out(report: CheckReport) -> Iterator[str]:
    """Yields why checks were not run, a paragraph for each reason."""
    reasons: dict[str, list[str]] = {}
    for result in report.results:
        if result.finding.verdict is Verdict.SKIPPED and result.finding.figure != NOT_ASKED_FOR:
            reasons.setdefault(result.finding.figure, []).append(result.check.id)
    for reason, names in reasons.items():
        yield _wrapped(f"- {reason}: {', '.join(names)}", "")


def opening(target: str, greeting: bytes) -> str:
    """Returns the line above the table: what the service says."""
    shown = escape(greeting)
    room = WIDTH - len(target) - len(" says  (1234567 B)")
    short = shown if len(shown) <= room else shown[: room - 1] + "…"
    return f"{target} says {short} ({len(greeting)} B)"


def listing(checks: dict[str, Check]) -> Iterator[str]:
    """Yields a line for each check, for ``--list``."""
    datagrams = None
    for check in checks.values():
        if check.datagrams is not datagrams:
            datagrams = check.datagrams
            yield f"For services of {LISTS[check.datagrams]}:"
        mark = "!" if check.heavy else " "
        yield f"{check.id:<{_ID}}{mark} {check.severity.value:<{_SEVERITY}}  {check.title}"
    yield ""
    yield "! is heavy: against another machine, it needs --yes."


def explanation(check: Check) -> Iterator[str]:
    """Yields what a check asks, why, and how a service is mended, for ``--explain``."""
    yield _wrapped(f"{check.id} ({check.severity.value}): the service {check.title}.", "")
    yield ""
    for name, text in (
        ("For", f"services of {LISTS[check.datagrams]}"),
        ("Why", check.why),
        ("Cause", check.cause),
        ("Cure", check.cure),
        ("Source", ", ".join(check.sources)),
        ("Asks", (check.run.__doc__ or "").strip()),
        ("Seen in", check.seen_in),
    ):
        if text:
            yield _wrapped(f"{name}: {text}", "")


def _is_cut(result: Result) -> bool:
    """True if the line of a check had no room for all of its figure."""
    return len(result.finding.figure) > _FIGURE


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False
    )

"""A report as a single HTML page that can be sent on: the table, and the story of each failure as a diagram.

Invariants:

- The page is self-contained and runs no script. Its content security policy forbids both.
- All external text is escaped by the template engine.
"""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

import jinja2

from greeter.conformance.findings import Verdict
from greeter.conformance.text import LEGEND, MARKS
from greeter.core.escapes import escape

if TYPE_CHECKING:
    from greeter.conformance.check_report import CheckReport, Result

POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'; img-src data:"
# The label of each exit code, and its CSS class.
RESULTS = {
    0: ("✓ Loses no client", "good"),
    1: ("✗ Never greeted", "bad"),
    98: ("? No verdict", "odd"),
    99: ("✗ Loses clients", "bad"),
}
_CLASSES = {Verdict.PASS: "good", Verdict.FAIL: "bad", Verdict.UNSURE: "odd"}
# What a client does; the rest of a story comes from the service.
_OURS = ("connect", "sent ")
ROW_HEIGHT, TOP = 26, 34


class Event(NamedTuple):
    """An event of a story, as it is drawn."""

    time: str  # in milliseconds
    text: str
    ours: bool
    y: int


def page(report: CheckReport) -> str:
    """Returns the page."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(
        (files("greeter.conformance") / "page.html.j2").read_text(encoding="utf-8")
    )
    return template.render(
        report=report,
        result=RESULTS[report.exit_code],
        rows=report.results,
        mark=_mark,
        legend=LEGEND,
        events=events,
        greeting=escape(report.greeting),
        height=lambda story: TOP + ROW_HEIGHT * (len(events(story)) + 1),
        css=(files("greeter.loadtest") / "page" / "report.css").read_text(encoding="utf-8"),
        policy=POLICY,
    )


def events(story: str) -> list[Event]:
    """Returns the events of a story that a finding tells in one line."""
    found = []
    for number, part in enumerate(story.split(" · ") if story else []):
        time, _, text = part.partition(" ")
        found.append(Event(time, text, text.startswith(_OURS), TOP + ROW_HEIGHT * (number + 1)))
    return found


def _mark(result: Result) -> tuple[str, str]:
    """Returns the mark of a check and its CSS class."""
    if result.expected:
        return ("✗", "bad") if result.broken else ("x", "odd")
    return MARKS[result.finding.verdict][0], _CLASSES.get(result.finding.verdict, "")

"""Compare the verdicts of several runs on a service, with each other and with the documented table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from greeter.conformance.checks import CHECKS
from greeter.conformance.findings import Severity, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

MARKS = {Verdict.PASS: "✓", Verdict.FAIL: "✗", Verdict.INFO: "i", Verdict.SKIPPED: "·", Verdict.UNSURE: "?"}
_VERDICTS = {mark: verdict for verdict, mark in MARKS.items()}


@dataclass(frozen=True)
class Difference:
    """A check that did not find the same in every run, or not what is documented.

    Attributes:
        id: Its id.
        runs: Its verdict in each run.
        documented: Its verdict in the documentation; None if it is not there.
    """

    id: str
    runs: tuple[Verdict, ...]
    documented: Verdict | None

    @property
    def changes(self) -> bool:
        """True if the verdict changed between pass and fail; that of a *should* may differ from the table."""
        found = set(self.runs)
        if CHECKS[self.id].severity is Severity.MUST and self.documented is not None:
            found.add(self.documented)
        return {Verdict.PASS, Verdict.FAIL} <= found

    def __str__(self) -> str:
        marks = " ".join(MARKS[verdict] for verdict in self.runs)
        table = f", documented {MARKS[self.documented]}" if self.documented is not None else ""
        word = "CHANGED" if self.changes else "differs"
        return f"{word}: {self.id} ({CHECKS[self.id].severity}) {marks}{table}"


def documented(text: str, name: str) -> dict[str, Verdict]:
    """Returns the verdicts of a service in the table of the documentation; empty if it has no row."""
    row = re.search(rf"^\| {re.escape(name)} [0-9]\S* \|(.*)\|$", text, re.M)
    if row is None:
        return {}
    head = re.findall(r"^\| service \|(.*)\|$", text[: row.start()], re.M)[-1]
    columns = [cell.strip(" `") for cell in head.split("|")]
    cells = [cell.strip() for cell in row[1].split("|")]
    return {
        column: _VERDICTS[cell[0]]
        for column, cell in zip(columns, cells, strict=True)
        if cell[0] in _VERDICTS  # a figure is not a verdict
    }


def compared(runs: list[dict[str, Verdict]], table: dict[str, Verdict]) -> Iterator[Difference]:
    """Yields the checks that differ between runs, or from the table, in the order in which they run."""
    for name in CHECKS:
        found = tuple(run.get(name, Verdict.UNSURE) for run in runs)
        expected = table.get(name)
        if len({*found, expected} - {None}) > 1:
            yield Difference(name, found, expected)

"""Run ``greeter check`` on real services, and write the table of its documentation.

    python -m tests.services            # writes greeter/conformance/README.md
    python -m tests.services nginx ssh  # only these, and only printed

A service that is not installed is left out, with the reason. It takes about 45 seconds for each.
"""

from __future__ import annotations

import asyncio
import datetime
import platform
import sys
from typing import TYPE_CHECKING

from greeter.conformance.check_run import run
from greeter.conformance.findings import Verdict
from greeter.system.fdlimit import raise_fd_limit
from tests.conftest import ROOT
from tests.services.programs import SERVICES, Missing
from tests.services.running import running

if TYPE_CHECKING:
    from collections.abc import Iterable

    from greeter.conformance import CheckReport

README = ROOT / "greeter" / "conformance" / "README.md"
BEGIN, END = "<!-- services: begin -->\n", "<!-- services: end -->\n"
COLUMNS = (
    "speaks-first",
    "speaks-much",
    "half-close",
    "silent",
    "silent-100",
    "kept",
    "let-go",
    "cut-off",
    "resets",
    "burst",
    "burst-1000",
    "descriptors",
    "reload",
    "stop-load",
    "stop",
)
MARKS = {Verdict.PASS: "✓", Verdict.FAIL: "✗", Verdict.INFO: "i", Verdict.SKIPPED: "·", Verdict.UNSURE: "?"}


def checked(name: str) -> tuple[str, CheckReport]:
    """Check one service. Returns its version and the report."""
    with running(SERVICES[name]) as service:
        plan = service.plan(pid=service.pid, restart=service.restart, stop=service.stop, start=service.start)
        report = asyncio.run(run(plan))
        return service.prepared.version, report


def row(name: str, version: str, report: CheckReport) -> str:
    """Returns a row of the table."""
    found = {result.check.id: result.finding for result in report.results}
    cells = []
    for column in COLUMNS:
        finding = found.get(column)
        if finding is None:
            cells.append("·")
        elif finding.verdict in (Verdict.FAIL, Verdict.UNSURE):
            cells.append(f"{MARKS[finding.verdict]} {finding.figure.partition(';')[0]}")
        elif column == "let-go" and finding.verdict is Verdict.PASS:
            cells.append(f"✓ {finding.figure.removeprefix('within ')}")
        else:
            cells.append(MARKS[finding.verdict])
    return f"| {name} {version} | {' | '.join(cells)} |\n"


def section(rows: Iterable[str], left_out: Iterable[str]) -> str:
    """Returns the table with the sentence above it."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    head = (
        f"Seen on {today} with `python -m tests.services`, on {platform.system()} {platform.release()} and\n"
        f"Python {platform.python_version()}, on the loopback, each configured as its documentation shows.\n"
    )
    table = "| service | " + " | ".join(f"`{column}`" for column in COLUMNS) + " |\n"
    table += "| --- |" + " --- |" * len(COLUMNS) + "\n" + "".join(rows)
    missing = "".join(f"\nLeft out: {reason}.\n" for reason in left_out)
    return f"{head}\n{table}{missing}"


def main(wanted: list[str]) -> int:
    """Check the services whose name contains one of ``wanted``, or all of them."""
    raise_fd_limit()
    rows, left_out = [], []
    for name in SERVICES:
        if wanted and not any(word in name for word in wanted):
            continue
        try:
            version, report = checked(name)
        except Missing as error:
            left_out.append(str(error))
            print(f"{name}: {error}", flush=True)
            continue
        rows.append(row(name, version, report))
        print(rows[-1], end="", flush=True)
        print(f"  {report.duration_s:.1f} s: {report.headline}", flush=True)
    if wanted:
        return 0
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n{section(rows, left_out)}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

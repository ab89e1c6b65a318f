"""Run ``greeter check`` on real services, and write the table of its documentation.

    python -m tests.services                 # writes greeter/conformance/README.md
    python -m tests.services nginx ssh       # only these, and only printed
    python -m tests.services --runs 5 nginx  # checks each 5 times, and compares the verdicts

A service that is not installed is left out, with the reason. It takes about 45 seconds for each run. With
``--runs``, the exit code is 1 if a verdict changes between pass and fail: from run to run, or for a *must*,
against the table of the documentation.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import platform
import sys
from typing import TYPE_CHECKING

from greeter.conformance.check_run import run
from greeter.conformance.checks import DATAGRAM_CHECKS
from greeter.conformance.findings import Verdict
from greeter.system.fdlimit import raise_fd_limit
from tests.conftest import ROOT
from tests.services.comparison import MARKS, compared, documented
from tests.services.programs import DATAGRAM_SERVICES, SERVICES, Missing
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
DATAGRAM_COLUMNS = tuple(name for name in DATAGRAM_CHECKS if name not in ("udp-greets", "udp-amplifies"))


def checked(name: str) -> tuple[str, CheckReport]:
    """Check one service. Returns its version and the report."""
    with running((SERVICES | DATAGRAM_SERVICES)[name]) as service:
        plan = service.plan(pid=service.pid, restart=service.restart, stop=service.stop, start=service.start)
        report = asyncio.run(run(plan))
        return service.prepared.version, report


def columns(name: str) -> tuple[str, ...]:
    """Returns the columns of the table that a service is in."""
    return DATAGRAM_COLUMNS if name in DATAGRAM_SERVICES else COLUMNS


def table(rows: dict[str, str], services: Iterable[str]) -> str:
    """Returns a table of those services that have a row."""
    names = [name for name in services if name in rows]
    if not names:
        return ""
    head = columns(names[0])
    text = "| service | " + " | ".join(f"`{column}`" for column in head) + " |\n"
    return text + "| --- |" + " --- |" * len(head) + "\n" + "".join(rows[name] for name in names)


def row(name: str, version: str, report: CheckReport) -> str:
    """Returns a row of the table."""
    found = {result.check.id: result.finding for result in report.results}
    cells = []
    for column in columns(name):
        finding = found.get(column)
        if finding is None:
            cells.append("·")
        elif finding.verdict in (Verdict.FAIL, Verdict.UNSURE):
            cells.append(f"{MARKS[finding.verdict]} {finding.figure.partition(';')[0]}")
        elif column == "udp-burst":
            cells.append(finding.figure.removesuffix(" answered").replace(" answered in", ","))
        elif column == "let-go" and finding.verdict is Verdict.PASS:
            cells.append(f"✓ {finding.figure.removeprefix('within ')}")
        else:
            cells.append(MARKS[finding.verdict])
    return f"| {name} {version} | {' | '.join(cells)} |\n"


def section(rows: dict[str, str], left_out: Iterable[str]) -> str:
    """Returns the tables with the sentence above them."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    head = (
        f"Seen on {today} with `python -m tests.services`, on {platform.system()} {platform.release()} and\n"
        f"Python {platform.python_version()}, on the loopback, each configured as its documentation shows.\n"
    )
    missing = "".join(f"\nLeft out: {reason}.\n" for reason in left_out)
    tables = (table(rows, SERVICES), table(rows, DATAGRAM_SERVICES))
    return "\n".join((head, *filter(None, tables))) + missing


def repeated(wanted: list[str], runs: int, text: str) -> int:
    """Check services several times. Returns the exit code: 1 if a verdict changed between pass and fail."""
    changed = 0
    for name in _named(wanted):
        found: list[dict[str, Verdict]] = []
        try:
            for number in range(runs):
                _, report = checked(name)
                found.append({result.check.id: result.finding.verdict for result in report.results})
                print(f"{name}, run {number + 1}: {report.duration_s:.1f} s, {report.headline}", flush=True)
                slow = sorted(report.results, key=lambda result: -result.seconds)[:5]
                print("  " + ", ".join(f"{each.check.id} {each.seconds:.1f} s" for each in slow), flush=True)
        except Missing as error:
            print(f"{name}: {error}", flush=True)
            continue
        for difference in compared(found, documented(text, name)):
            changed += difference.changes
            print(f"  {difference}", flush=True)
    print(f"{changed} verdicts changed between pass and fail")
    return int(changed > 0)


def _named(wanted: list[str]) -> list[str]:
    return [
        name for name in (*SERVICES, *DATAGRAM_SERVICES) if not wanted or any(word in name for word in wanted)
    ]


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.services")
    parser.add_argument("names", nargs="*", help="parts of the names of services; all by default")
    parser.add_argument("--runs", type=int, default=0, help="check each so often, and compare the verdicts")
    return parser


def main(args: list[str]) -> int:
    """Check the services whose name contains one of those given, or all of them."""
    options = parser().parse_args(args)
    raise_fd_limit()
    text = README.read_text(encoding="utf-8")
    if options.runs:
        return repeated(options.names, options.runs, text)
    rows: dict[str, str] = {}
    left_out = []
    for name in _named(options.names):
        try:
            version, report = checked(name)
        except Missing as error:
            left_out.append(str(error))
            print(f"{name}: {error}", flush=True)
            continue
        rows[name] = row(name, version, report)
        print(rows[name], end="", flush=True)
        print(f"  {report.duration_s:.1f} s: {report.headline}", flush=True)
    if options.names:
        return 0
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n{section(rows, left_out)}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

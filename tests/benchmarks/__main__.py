"""Measure, and print what was found: ``python -m tests.benchmarks``.

Invariants:
- It ends by itself on any machine: after a quarter of an hour or so, with ``--quick`` in less than two.
- Tables go to stdout, progress to stderr.
- A missed claim is a result and no failure. The exit code says only whether there was something to report.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks import groups, machine, report
from tests.benchmarks.bench import Bench
from tests.benchmarks.process import WouldNotStart

if TYPE_CHECKING:
    from collections.abc import Sequence


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="What greeter costs, beside what else this machine has.",
        allow_abbrev=False,
    )
    options.add_argument("--list", action="store_true", help="name the groups of rows, and end")
    options.add_argument(
        "--quick", action="store_true", help="less of everything: under two minutes, and rough"
    )
    options.add_argument("--rounds", type=_number, metavar="N", help="so many rounds, however long they take")
    options.add_argument(
        "--clients", type=_number, metavar="N", help="how many clients the group scale holds at once"
    )
    options.add_argument(
        "--only", action="append", choices=groups.GROUPS, metavar="GROUP", help="this group; may be repeated"
    )
    options.add_argument(
        "--json", type=Path, metavar="FILE", help="write the same as JSON, with every sample"
    )
    return options


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.list:
        width = max(map(len, groups.GROUPS))
        for name in groups.GROUPS:
            print(f"{name:<{width}}  {groups.describe(name)}")
        return 0
    if not sys.platform.startswith("linux"):
        print("the benchmarks read Linux's /proc", file=sys.stderr)
        return 1
    # A SIGTERM unwinds like any other end, so that what was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return _measure(options)
    except (WouldNotStart, OSError) as error:
        print(f"cannot measure: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _measure(options: argparse.Namespace) -> int:
    if options.json is not None:
        options.json.touch()  # better now than after minutes
    with tempfile.TemporaryDirectory(prefix="greeter-benchmarks-") as folder:
        bench = Bench(Path(folder), quick=options.quick, rounds=options.rounds, clients=options.clients)
        facts = bench.facts()
        print(report.header(facts), flush=True)
        disturbance = machine.Disturbance()
        tables = []
        for name in options.only or _usual(bench):
            for table in groups.run(name, bench):
                bench.say("")
                print(f"\n{report.as_text(table)}", flush=True)
                tables.append(table)
        bench.say("")
    facts["meanwhile"] = disturbance.share()
    for name, why in bench.left_out.items():
        print(f"\nnot measured: {name}: {why}")
    print(f"\n{report.claims(tables)}")
    print(f"\nMeanwhile {facts['meanwhile']}. {report.verdict(tables)}")
    if options.json is not None:
        options.json.write_text(json.dumps(report.as_json(facts, tables, bench.left_out), indent=1) + "\n")
    return 0


def _usual(bench: Bench) -> list[str]:
    """The groups of a run that names none."""
    if not bench.quick:
        return list(groups.GROUPS)
    for name in groups.LONG:
        bench.left_out[name] = "it takes a minute; a full run has it, and --only"
    return [name for name in groups.GROUPS if name not in groups.LONG]


if __name__ == "__main__":
    sys.exit(main())

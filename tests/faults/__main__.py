"""``python -m tests.faults``: run the whole matrix, or a part, and say what did not hold.

The exit code is 1 if something did not hold.
"""

from __future__ import annotations

import argparse
import collections
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.matrix import Matrix
from tests.support.shims import compile_shim


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    options = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    options.add_argument("rows", nargs="*", help="run rows whose name has one of these texts in it")
    options.add_argument("--jobs", type=int, default=6 * (os.cpu_count() or 1), help="services at a time")
    options.add_argument("--every", type=int, default=1, metavar="N", help="run every N-th row only")
    options.add_argument("--first", type=int, default=0, metavar="N", help="the first of them, from 0 on")
    options.add_argument("--kind", action="append", default=[], help="a kind of service; may be repeated")
    return options


def main() -> int:
    args = parser().parse_args()
    outcomes: collections.Counter[tuple[str, str]] = collections.Counter()
    begun = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as directory,
        Matrix(compile_shim("faults.c", Path(directory)), args.jobs, args.kind) as matrix,
    ):
        rows = [row for row in matrix.rows() if not args.rows or any(text in str(row) for text in args.rows)]
        rows = rows[args.first :: args.every]
        print(f"{len(rows)} rows", flush=True)
        for number, result in enumerate(matrix.run(rows), 1):
            outcomes[result.row.kind, result.outcome] += 1
            if result.problems:
                print(f"{result.row}: {'; '.join(result.problems)}")
                print("".join(f"    {line}\n" for line in result.record.lines), end="", flush=True)
            elif number % 500 == 0:
                print(f"{number} rows after {time.monotonic() - begun:.0f} s", flush=True)
    for (kind, outcome), count in sorted(outcomes.items()):
        print(f"{kind:15} {outcome:22} {count:5}")
    failed = sum(count for (_, outcome), count in outcomes.items() if outcome == "failed")
    print(f"{len(rows)} rows, {failed} failed, {time.monotonic() - begun:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

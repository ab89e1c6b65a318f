"""Compare a run with the one before, and keep it for the next comparison.

    python examples/load_baseline.py 127.0.0.1:9999 last-run.json

The first run writes the file. A later one exits with 99 when a figure is worse by more than a quarter.
"""

import asyncio
import sys
from pathlib import Path

from greeter.loadtest import LoadPlan, LoadReport, load
from greeter.loadtest.outfile import write
from greeter.loadtest.render import summary


def main(target: str, path: Path) -> int:
    report = asyncio.run(load(LoadPlan(target, rate=200, duration=0.5)))
    if path.exists():
        old = LoadReport.from_json(path.read_text(), path.name)
        report = report.against(old, tolerance=25, name=path.name)
    if report.exit_code == 0:
        write(path, report.to_json())
    print(summary(report))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])) if len(sys.argv) == 3 else __doc__)

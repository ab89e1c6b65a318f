"""Compare a run with the previous one, and save it for the next comparison.

    python examples/load_baseline.py 127.0.0.1:9999 last-run.json

The first run writes the file. A later one exits with 99 if a figure is worse by more than 1,000 %, as when
the server stalls. A lower tolerance is too strict for a run of one second on one machine: greetings take
0.1 ms there, and other processes add a millisecond or two. Between idle machines, try 25.
"""

import asyncio
import sys
from pathlib import Path

from greeter import GreeterError
from greeter.loadtest import LoadPlan, load
from greeter.loadtest.report.outfile import write
from greeter.loadtest.report.render import summary
from greeter.loadtest.report.saved import read_report


def main(target: str, path: Path) -> int:
    old = read_report(path) if path.exists() else None
    report = asyncio.run(load(LoadPlan(target, rate=500, duration=1.0)))
    if old is not None:
        report = report.against(old, tolerance=1000, name=path.name)
    print(summary(report))
    if report.exit_code == 0:
        write(path, report.to_json())
    return report.exit_code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1], Path(sys.argv[2])) if len(sys.argv) == 3 else __doc__)
    except GreeterError as error:
        sys.exit(str(error))

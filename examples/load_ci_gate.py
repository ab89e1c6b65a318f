"""A gate for continuous integration: it passes if the service keeps its limits under load.

    python examples/load_ci_gate.py 127.0.0.1:9999

Exit status: 0 passed, 99 a limit was missed, 98 this machine could not make the load, 1 nothing was greeted.
"""

import asyncio
import sys

from greeter import GreeterError
from greeter.loadtest import LoadPlan, Threshold, load
from greeter.loadtest.report.render import summary

LIMITS = ("response:p99<250ms", "connect:max<=1s", "errors:rate<0.1%", "rate:achieved>=90")


async def gate(target: str) -> int:
    plan = LoadPlan(
        target,
        rate=100,
        duration=1.0,
        warmup=0.25,
        expect="Thank you",
        thresholds=[Threshold.parse(limit) for limit in LIMITS],
    )
    report = await load(plan)
    print(summary(report))
    return report.exit_code


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(gate(sys.argv[1])) if len(sys.argv) == 2 else __doc__)
    except GreeterError as error:
        sys.exit(str(error))

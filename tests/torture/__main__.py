"""``python -m tests.torture``: see the package."""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.support.shims import NoCompilerError
from tests.torture.campaign import Campaign
from tests.torture.drawing import draw
from tests.torture.schedule import Schedule
from tests.torture.service import Workshop


def numbers(text: str) -> list[int]:
    """Parse ``3``, ``1-20`` or ``3,5-7``."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def torture_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture", description="Random services, clients and faults, each from a seed."
    )
    parser.add_argument("--seeds", type=numbers, default=numbers("1-20"), metavar="A-B", help="which seeds")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no seed after so long")
    jobs = len(os.sched_getaffinity(0))
    parser.add_argument("--jobs", type=int, default=jobs, help="seeds side by side (default: one a core)")
    parser.add_argument("--shrink", type=float, default=120.0, metavar="SECONDS", help="to shorten a failure")
    parser.add_argument("--without", type=numbers, default=[], help="numbers of events to leave out")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="a schedule that a failure has written")
    parser.add_argument("--show", action="store_true", help="print the schedules, and play none")
    return parser


async def run(options: argparse.Namespace) -> int:
    """Play what the options ask for. Returns the exit code."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGTERM, task.cancel
    )  # as SIGINT: no process is left
    with tempfile.TemporaryDirectory(prefix="torture-") as directory:
        campaign = Campaign(
            Workshop.open(Path(directory)), options.shrink, options.jobs, Path(tempfile.gettempdir())
        )
        begun = time.monotonic()
        if options.replay or options.without:
            if options.replay:
                schedule, name = Schedule.from_json(options.replay.read_text()), "replay"
            else:
                (seed,) = options.seeds
                schedule, name = draw(seed), f"seed {seed}"
            schedule = schedule.without(frozenset(options.without))
            played, failed = 1, int(await campaign.fails(schedule, name))
        else:
            played, failed = await campaign.run(options.seeds, options.minutes * 60)
        seconds = time.monotonic() - begun
    seen = campaign.seen
    print(
        f"clients: {seen['greeted']} greeted, {seen['refused']} refused, {seen['lost']} lost;"
        f" {seen['killed']} processes killed, {seen['faults']} system calls failed"
    )
    excused = ", ".join(f"{count} {why}" for why, count in sorted(campaign.lost.items()))
    print(f"excuses of those that were lost: {excused or 'none'}")
    print(f"{played} seeds played, {failed} failed, in {seconds:.0f} s", flush=True)
    return 1 if failed or not played else 0


def main() -> int:
    """Run the command. Returns the exit code."""
    options = torture_parser().parse_args()
    if options.show:
        for seed in options.seeds:
            print(f"seed {seed}\n{draw(seed)}\n")
        return 0
    try:
        return asyncio.run(run(options))
    except NoCompilerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130


if __name__ == "__main__":
    sys.exit(main())

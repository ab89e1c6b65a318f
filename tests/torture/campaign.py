"""Many seeds side by side, and the report of what fails."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.torture.drawing import draw
from tests.torture.excuses import judge_lost
from tests.torture.invariants import problems
from tests.torture.playing import play
from tests.torture.shrinking import shrink

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.torture.evidence import Problem
    from tests.torture.schedule import Schedule
    from tests.torture.service import Workshop

# A failure that depends on time may need several tries to show again.
TRIES = 2


@dataclass(frozen=True)
class Campaign:
    """How schedules are played.

    Args:
        workshop: What all services share.
        shrink_seconds: How long to look for a shorter schedule that fails; 0 does not.
        jobs: How many are played side by side.
        folder: Where the shortest schedules that fail are written.
        seen: How many good clients were greeted, refused and lost, and the faults, over all schedules.
        lost: The excuses for those that were lost.
    """

    workshop: Workshop
    shrink_seconds: float
    jobs: int
    folder: Path
    seen: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)

    async def judge(self, schedule: Schedule) -> list[Problem]:
        """Play a schedule once. Returns what is wrong."""
        directory = self.workshop.directory / str(next(_numbers))
        evidence = await play(schedule, self.workshop, directory)
        shutil.rmtree(directory, ignore_errors=True)
        self.seen.update(visit.outcome for visit in evidence.visits if visit.good)
        self.lost.update(judge_lost(evidence)[1])
        self.seen["killed"] += len(evidence.kills) + evidence.parent_killed
        self.seen["faults"] += sum(delivered for _, _, delivered in evidence.faults)
        return problems(evidence)

    async def run(self, seeds: Iterable[int], seconds: float) -> tuple[int, int]:
        """Play seeds until all are played or ``seconds`` have passed.

        Returns:
            How many were played, and how many of them failed.
        """
        end = time.monotonic() + seconds
        left = iter(seeds)
        played = failed = 0

        async def work() -> None:
            nonlocal played, failed
            for seed in left:
                if time.monotonic() >= end:
                    return
                fails = await self.fails(draw(seed), f"seed {seed}")
                played, failed = played + 1, failed + fails

        async with asyncio.TaskGroup() as group:
            for _ in range(self.jobs):
                group.create_task(work())
        return played, failed

    async def fails(self, schedule: Schedule, name: str) -> bool:
        """Play one schedule, and report a failure. Returns whether it fails."""
        found = await self.judge(schedule)
        if not found:
            return False
        _print(f"{name} FAILS", found, schedule)
        if self.shrink_seconds:
            names = {problem.invariant for problem in found}
            shown = {schedule: found}

            async def fails_alike(candidate: Schedule) -> bool:
                for _ in range(TRIES):
                    now = [problem for problem in await self.judge(candidate) if problem.invariant in names]
                    if now:
                        shown[candidate] = now
                        return True
                return False

            shortest = await shrink(schedule, fails_alike, self.shrink_seconds, self.jobs)
            file = self.folder / f"torture-{name.replace(' ', '-')}.json"
            file.write_text(shortest.to_json() + "\n")
            _print(f"{name}, shrunk", shown[shortest], shortest)
            print(f"replay: python -m tests.torture --replay {file}\n", flush=True)
        return True


_numbers = itertools.count()


def _print(title: str, found: list[Problem], schedule: Schedule) -> None:
    lines = [title, *(f"  {problem.invariant}: {problem.text}" for problem in found), f"{schedule}\n"]
    print("\n".join(lines), flush=True)

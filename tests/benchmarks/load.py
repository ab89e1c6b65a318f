"""The load: closed-loop clients in a process of their own, and what they saw.

The law: the load is compiled by the machine's own compiler, because a slow client measures itself. Where
there is no compiler a Python program does the same, and the header says so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.process import WouldNotStart, environment, on_processor

PROGRAMS = Path(__file__).parent / "programs"
GREETING = b"Thank you for connecting"

# A run that takes longer is stuck; a client of it gives up after five seconds without any event.
_PATIENCE = 120.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the clients of one run ended, and the times to the greeting of those that were greeted."""

    greeted: int
    reset: int
    empty: int
    short: int
    failed: int
    seconds: float
    p50_us: float
    p99_us: float

    @property
    def lost(self) -> int:
        return self.reset + self.empty + self.short + self.failed

    @property
    def rate(self) -> float:
        """Greeted clients a second."""
        return self.greeted / self.seconds


class Load:
    """Makes load from ``processor`` with the compiled ``program``; without one, with that in Python."""

    def __init__(self, program: str | None, processor: int | None) -> None:
        self._processor = processor
        self._command = [sys.executable, str(PROGRAMS / "load.py")] if program is None else [program]

    def command(self, port: int, *, at_once: int, total: int, say: int = 0) -> list[str]:
        """The command line of what ``run`` runs."""
        return [*self._command, *map(str, (port, at_once, total, say, len(GREETING)))]

    def run(self, port: int, *, at_once: int, total: int, say: int = 0) -> Outcome:
        """``total`` clients of the port, ``at_once`` of them at a time; each sends ``say`` bytes first."""
        with on_processor(self._processor):
            done = subprocess.run(
                self.command(port, at_once=at_once, total=total, say=say),
                capture_output=True,
                text=True,
                timeout=_PATIENCE,
                check=False,
                env=environment(),
            )
        if done.returncode:
            raise SystemExit(f"the load failed: {done.stderr.strip()}")
        return Outcome(**json.loads(done.stdout))


def compile_c(name: str, folder: Path, compiler: str) -> str:
    """Compile ``programs/NAME.c`` into ``folder``; returns the program's path. Raises WouldNotStart."""
    program = str(folder / name)
    command = [compiler, "-O2", "-Wall", "-Wextra", "-o", program, str(PROGRAMS / f"{name}.c")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise WouldNotStart((done.stderr.strip().splitlines() or ["it does not say why"])[0])
    return program

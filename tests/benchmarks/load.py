"""The load: closed-loop clients in a process of their own, and how they ended.

Invariants:
- The load is in C, compiled on this machine, because a slow client measures itself. Without a compiler a
  program in Python does the same over plain TCP, and the header says so.
- Load over TLS is in C only; what needs it is left out where it cannot be compiled.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.process import WouldNotStart, environment, on_processor

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAMS = Path(__file__).parent / "programs"
GREETING = b"Thank you for connecting"

# The libraries that a program in C is linked with.
LIBRARIES = {"load_tls": ("ssl", "crypto")}

# A run that takes longer is stuck; a client of it gives up after five seconds without any event.
_PATIENCE = 120.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the clients of one run ended, and the times to the greeting of those that were greeted."""

    greeted: int
    reset: int
    empty: int
    short: int
    wrong: int
    failed: int
    seconds: float
    p50_us: float
    p99_us: float

    @property
    def lost(self) -> int:
        """Clients that were not greeted."""
        return self.reset + self.empty + self.short + self.wrong + self.failed

    @property
    def rate(self) -> float:
        """Greeted clients a second."""
        return self.greeted / self.seconds


class Load:
    """Makes load from ``processor`` with the compiled ``program``; without one, with that in Python.

    Args:
        program: The path of the compiled load.c, or None.
        processor: The CPU to run on, or None for any.
        payloads: What clients send first, taken in turn; nothing if empty.
        times: The greeting is GREETING so many times.
    """

    def __init__(
        self, program: str | None, processor: int | None, payloads: Sequence[bytes] = (), *, times: int = 1
    ) -> None:
        self._processor = processor
        self._command = [sys.executable, str(PROGRAMS / "load.py")] if program is None else [program]
        self._fourth = ",".join(payload.hex() for payload in payloads)
        self._expect = GREETING.hex() + (f"*{times}" if times > 1 else "")

    def command(self, port: int, *, at_once: int, total: int) -> list[str]:
        """The command line of what ``run`` runs."""
        return [*self._command, *map(str, (port, at_once, total)), self._fourth, self._expect]

    def run(self, port: int, *, at_once: int, total: int) -> Outcome:
        """Make ``total`` clients of the port, ``at_once`` of them at a time.

        Raises:
            SystemExit: The load itself failed, so nothing is known about the server.
        """
        with on_processor(self._processor):
            done = subprocess.run(
                self.command(port, at_once=at_once, total=total),
                capture_output=True,
                text=True,
                timeout=_PATIENCE,
                check=False,
                env=environment(),
            )
        if done.returncode:
            raise SystemExit(f"the load failed: {done.stderr.strip()}")
        return Outcome(**json.loads(done.stdout))


class TLSLoad(Load):
    """The same over TLS 1.3, with the compiled load_tls.c; clients trust the ``certificate`` (PEM) alone."""

    def __init__(self, program: str, processor: int | None, certificate: Path) -> None:
        super().__init__(program, processor)
        self._fourth = str(certificate)


def compile_c(name: str, folder: Path, compiler: str, *options: str) -> str:
    """Compile ``programs/NAME.c`` into ``folder``.

    Returns:
        The path of the program.

    Raises:
        WouldNotStart: It does not compile; the message is the compiler's first line.
    """
    program = str(folder / name)
    libraries = [f"-l{library}" for library in LIBRARIES.get(name, ())]
    command = [compiler, "-O2", "-Wall", "-Wextra", *options, "-o", program, str(PROGRAMS / f"{name}.c")]
    done = subprocess.run([*command, *libraries], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise WouldNotStart((done.stderr.strip().splitlines() or ["it does not say why"])[0])
    return program

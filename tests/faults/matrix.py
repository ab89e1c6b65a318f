"""The rows of the matrix, and how they are run."""

from __future__ import annotations

import queue
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.conftest import loop_factories
from tests.faults.errors import ERRORS, NO_ERRORS
from tests.faults.runs import Fault, Record, Run, Zygote
from tests.faults.services import KINDS, Files
from tests.faults.verdicts import problems

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType

# Of a call that is made more often in a run, so many are hit, evenly spread.
MAX_HITS = 12
# What a parent logs of a worker that takes too long to start, and how often a run is tried then.
TOO_BUSY = "was not ready within"
TRIES = 3


@dataclass(frozen=True)
class Row:
    """A service, its event loop, and what fails in it."""

    kind: str
    loop: str
    fault: Fault

    def __str__(self) -> str:
        return f"{self.kind} {self.loop} {self.fault}"


@dataclass(frozen=True)
class Result:
    """What came of a row: its record, and what did not hold of it."""

    row: Row
    record: Record
    problems: list[str]

    @property
    def outcome(self) -> str:
        if self.problems:
            return "failed"
        if not self.record.hit_in:
            return "not reached"
        return f"survived in {self.record.hit_in}" if self.record.connected else "did not start"


def spread(count: int, most: int) -> list[int]:
    """``most`` of the numbers from 1 to ``count``, the first and the last one among them, or all of them."""
    if count <= most:
        return list(range(1, count + 1))
    return [1 + (count - 1) * place // (most - 1) for place in range(most)]


class Matrix:
    """The whole matrix. It is used as a context manager.

    Args:
        shim: faults.c, compiled.
        jobs: How many services run at the same time.
        kinds: The kinds of service; all by default.
    """

    def __init__(self, shim: Path, jobs: int, kinds: Iterable[str] = ()) -> None:
        self._stages = [(kind, loop) for kind in kinds or KINDS for loop in loop_factories()]
        self._directory = Path(tempfile.mkdtemp(prefix="faults-"))
        (self._directory / "files").mkdir()
        self._files = Files(self._directory / "files")
        self._pool = ThreadPoolExecutor(jobs)
        self._zygotes: queue.SimpleQueue[Zygote] = queue.SimpleQueue()
        self._all = [Zygote(shim) for _ in range(jobs)]
        for zygote in self._all:
            self._zygotes.put(zygote)
        self._count = 0
        self._lock = threading.Lock()
        self.base: dict[tuple[str, str], Record] = {}

    def __enter__(self) -> Matrix:
        for stage, record in zip(self._stages, self._pool.map(self._play_base, self._stages), strict=True):
            assert record.code == 0, f"{stage}: {record}"
            assert not record.hung, f"{stage}: {record}"
            self.base[stage] = record
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        for zygote in self._all:
            zygote.close()
        shutil.rmtree(self._directory)

    def rows(self) -> Iterator[Row]:
        """Every row. Raises LookupError if the table has no errors for a call."""
        for (kind, loop), record in self.base.items():
            for call, count in record.seen.items():
                if call in NO_ERRORS:
                    continue
                for error in ERRORS[call]:
                    for number in spread(count, MAX_HITS):
                        yield Row(kind, loop, Fault(call, number, error))

    def run(self, rows: Sequence[Row]) -> Iterator[Result]:
        """Run some rows; yields the result of each."""
        yield from self._pool.map(self._judge, rows)

    def _judge(self, row: Row) -> Result:
        base = self.base[row.kind, row.loop]
        record = self._play(row.kind, row.loop, row.fault, base.descriptors)
        return Result(row, record, problems(KINDS[row.kind], row.loop, row.fault, record, base))

    def _play_base(self, stage: tuple[str, str]) -> Record:
        return self._play(*stage, None, None)

    def _play(self, kind: str, loop: str, fault: Fault | None, base: int | None) -> Record:
        """Run the scenario, once more if the machine was too busy to start a worker within READY_TIMEOUT."""
        for _ in range(TRIES):
            record = self._play_once(kind, loop, fault, base)
            if not any(TOO_BUSY in line for line in record.lines):
                break
        return record

    def _play_once(self, kind: str, loop: str, fault: Fault | None, base: int | None) -> Record:
        with self._lock:
            self._count += 1
            directory = self._directory / str(self._count)
        directory.mkdir()
        zygote = self._zygotes.get()
        try:
            run = Run(
                KINDS[kind], loop, fault, zygote=zygote, files=self._files, directory=directory, base=base
            )
            return run.play()
        finally:
            self._zygotes.put(zygote)
            shutil.rmtree(directory)

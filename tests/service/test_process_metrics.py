"""The ``process_*`` metrics, summed over processes that come and go."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from greeter.service import process_metrics
from tests.conftest import PATIENCE

if TYPE_CHECKING:
    import pytest

# Uses half a second of a processor, then waits for the end of its input.
BUSY = "import sys, time\nwhile time.process_time() < 0.5: pass\nprint(flush=True); sys.stdin.read()"


def processor_seconds(*processes: int | str) -> float:
    metrics = {metric.name: metric for metric in process_metrics.process_metrics(processes)}
    return metrics["process_cpu_seconds"].samples[0].value


def test_the_processor_time_of_a_worker_that_exits_meanwhile_counts_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = process_metrics._seconds_of_exited_children
    calls: list[None] = []
    with subprocess.Popen(
        (sys.executable, "-c", BUSY), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()

        def after_it_has_exited() -> float:
            calls.append(None)
            if len(calls) == 2:  # the processes have been read
                child.communicate(timeout=PATIENCE)
            return real()

        monkeypatch.setattr(process_metrics, "_seconds_of_exited_children", after_it_has_exited)
        before = processor_seconds("self", child.pid)
    assert len(calls) == 3  # they have been read again
    assert processor_seconds("self") >= before

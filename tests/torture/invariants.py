"""What is wrong with the evidence of a run.

Invariants of greeter, by the names that a report uses:

- ``clients``: a good client is greeted whole, or refused, or what excuses.py says has happened.
- ``refused``: it is refused only after a stop.
- ``counters``: accepted = greeted + failed + rejected. No client is greeted and not counted.
- ``log``: each line is JSON. None has a traceback but of a greeting callable. There are not too many.
- ``exit``: the exit code is the documented one, in time, and no process is left. An orderly stop removes the
  file of a Unix socket.
- ``quiet``, ``idle``, ``descriptors``, ``memory``: without clients, a service is as it was (playing.py).
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from tests.torture.evidence import Evidence, Problem, lines_of
from tests.torture.excuses import judge_lost, may_lose_the_last_line, may_miscount, totals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.torture.visits import Visit

# Lines of a log: at the start and the end, for each client, and in each second.
LINES, LINES_A_CLIENT, LINES_A_SECOND = 60, 2, 20
SHOWN = 5


def problems(evidence: Evidence) -> list[Problem]:
    """Return all that is wrong."""
    if any(problem.invariant == "start" for problem in evidence.problems):
        return evidence.problems
    return [
        *evidence.problems,
        *_clients(evidence),
        *_exit(evidence),
        *_counters(evidence),
        *_log(evidence),
    ]


def _clients(evidence: Evidence) -> Iterator[Problem]:
    lost, _ = judge_lost(evidence)
    if lost:
        shown = "; ".join(map(str, lost[:SHOWN]))
        yield Problem("clients", f"{len(lost)} lost: {shown}")
    early = [visit for visit in evidence.visits if visit.outcome == "refused" and _early(evidence, visit)]
    if early:
        yield Problem(
            "refused", f"{len(early)} refused before the stop: {'; '.join(map(str, early[:SHOWN]))}"
        )
    if unjudged := [visit for visit in evidence.visits if visit.good and not visit.outcome]:
        yield Problem("clients", f"{len(unjudged)} without an end")


def _early(evidence: Evidence, visit: Visit) -> bool:
    return not evidence.stopped or visit.ended < evidence.stopped


def _exit(evidence: Evidence) -> Iterator[Problem]:
    wanted = -signal.SIGKILL if evidence.parent_killed else 0
    if evidence.code is None:
        yield Problem("exit", "it did not exit in time")
    elif evidence.code != wanted:
        yield Problem("exit", f"it exited with {evidence.code}, not {wanted}")
    if evidence.left:
        yield Problem("exit", f"{evidence.left} processes are left")
    if evidence.socket_file_left and not evidence.parent_killed:
        yield Problem("exit", "the file of its Unix socket is left")


def _counters(evidence: Evidence) -> Iterator[Problem]:
    last = totals(evidence)
    if last is None:
        if not may_lose_the_last_line(evidence):
            yield Problem("counters", "the log has no last line with totals")
        return
    if last.accepted != last.greeted + last.failed + last.rejected:
        yield Problem("counters", f"at the end, they do not add up: {last}")
    streams = [visit for visit in evidence.visits if visit.endpoint != "udp"]
    whole = sum(visit.outcome == "greeted" for visit in streams)
    if last.greeted + may_miscount(evidence) < whole:
        yield Problem("counters", f"{last.greeted} greeted, but {whole} clients were")
    came = sum(bool(visit.connected) and visit.outcome != "refused" for visit in streams)
    if last.accepted > came:
        yield Problem("counters", f"{last.accepted} accepted of {came} connections")


def _log(evidence: Evidence) -> Iterator[Problem]:
    lines = lines_of(evidence.log)
    for line in lines:
        if isinstance(line, str):
            yield Problem("log", f"no JSON: {line[:500]!r}")
            return
        if "traceback" in line and line.get("reason") != "greeting_error":
            yield Problem("log", f"a traceback: {line}")
            return
    allowed = LINES + LINES_A_CLIENT * len(evidence.visits) + LINES_A_SECOND * evidence.seconds
    if len(lines) > allowed:
        yield Problem(
            "log", f"{len(lines)} lines, for {len(evidence.visits)} clients in {evidence.seconds:.1f} s"
        )

"""Which fault may cost which client. What is not here is a fault of the service.

Each excuse says which visits it can explain and how many of them. A visit needs one excuse, and uses it up.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from tests.torture.schedule import COSTLY, FULL_DISK

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.torture.evidence import Evidence
    from tests.torture.schedule import Event
    from tests.torture.visits import Visit


# How much early a deadline may pass, in seconds: a service enforces those together that are 2 ms apart, and
# uvloop's clock is as old as the turn of its loop.
EARLY = 0.01


@dataclass(frozen=True)
class Totals:
    """The last line of a service."""

    greeted: int
    accepted: int
    failed: int
    rejected: int


@dataclass
class Excuse:
    """A reason why clients may be lost.

    Attributes:
        why: The reason.
        quota: How many clients it may cost.
        explains: Whether it can be the reason of a visit.
        explained: The visits that it is the reason of.
    """

    why: str
    quota: float
    explains: Callable[[Visit], bool]
    explained: list[Visit] = field(default_factory=list)


def totals(evidence: Evidence) -> Totals | None:
    """Return the totals in the log, None if it has none."""
    found = re.findall(
        rb"Stopped: (\d+) greeted of (\d+) accepted, (\d+) failed(?:, (\d+) rejected)?", evidence.log
    )
    return Totals(*(int(number or 0) for number in found[-1])) if found else None


def excuses(evidence: Evidence) -> list[Excuse]:
    """Return all that may cost a client in this run."""
    spec, last, stopped = evidence.schedule.service, totals(evidence), evidence.stopped
    failed = last.failed if last is not None else math.inf
    rejected = last.rejected if last is not None else math.inf
    found = []
    for at, opened in evidence.kills:
        # A killed worker: at most the connections that it had open.
        found.append(Excuse("kill", opened, partial(_open_at, at)))
    if evidence.all_killed:
        # The kernel resets the accept queue that no process has open any more.
        found.append(Excuse("all killed", math.inf, partial(_ends_after, evidence.all_killed)))
    for at, event, delivered in evidence.faults:
        if _costs(event):
            # A call that fails for good: the connection that it is for.
            found.append(Excuse("fault", delivered, partial(_ends_after, at)))
    if spec.max_per_ip:
        # Over a limit: closed before the first byte, and counted.
        found.append(Excuse("rejected", rejected, _receives_nothing))
    if spec.greeting == "flaky":
        # A callable that fails: an end without a greeting, and counted.
        found.append(Excuse("greeting error", failed, _ends_without_greeting))
    # Not greeted in time, and counted.
    found.append(Excuse("greet timeout", failed, partial(_takes, spec.greet_timeout)))
    # Did not close in time after the last byte.
    found.append(Excuse("linger timeout", math.inf, partial(_lingers, spec.linger_timeout)))
    if stopped:
        # Still open at the drain deadline.
        found.append(Excuse("drain timeout", math.inf, partial(_ends_after, stopped + spec.drain_timeout)))
    return found


def _ends_without_greeting(visit: Visit) -> bool:
    """Whether a client received an orderly end, and nothing before it."""
    return visit.how.startswith(("an end after 0 ", "NoGreeting("))


def _costs(event: Event) -> bool:
    """Whether a fault costs the connection that it hits."""
    return event.error in COSTLY.get(event.what, ()) and not event.part


def _receives_nothing(visit: Visit) -> bool:
    return not visit.received


def _open_at(moment: float, visit: Visit) -> bool:
    # The kernel has connected it before it knows.
    return visit.began <= moment <= visit.ended


def _ends_after(moment: float, visit: Visit) -> bool:
    return visit.ended >= moment


def _takes(seconds: float, visit: Visit) -> bool:
    return visit.ended - visit.began >= seconds - EARLY


def _lingers(seconds: float, visit: Visit) -> bool:
    """Whether a client read or spoke for so long that the linger deadline can have passed, and was reset."""
    return visit.how.startswith(("ConnectionReset", "BrokenPipe", "GreetReset")) and _takes(seconds, visit)


def may_lose_the_last_line(evidence: Evidence) -> bool:
    """Whether the last line can be missing: the parent was killed, or the disk or the pipe was full."""
    full = any(
        event.what == FULL_DISK[0] and at + event.ms / 1000 >= evidence.stopped
        for at, event, _ in evidence.faults
    )
    return evidence.parent_killed or evidence.schedule.service.log != "file" or full


def may_miscount(evidence: Evidence) -> int:
    """Return how many clients can be greeted whole and count as failed.

    The kernel has the greeting when shutdown() fails, or when a worker is killed before it counts.
    """
    hit = sum(delivered for _, event, delivered in evidence.faults if _costs(event))
    return hit + sum(opened for _, opened in evidence.kills)


def judge_lost(evidence: Evidence) -> tuple[list[Visit], Counter[str]]:
    """Return the good clients that were lost although nothing excuses it, and the reasons of the others.

    Of two reasons that explain a client, the one is chosen that leaves an excuse for most others: a maximum
    bipartite matching, by augmenting paths.
    """
    available = excuses(evidence)
    lost = [visit for visit in evidence.visits if visit.good and visit.outcome == "lost"]
    unexcused = [visit for visit in lost if not _assign(visit, available, set())]
    return unexcused, Counter(each.why for each in available for _ in each.explained)


def _assign(visit: Visit, available: list[Excuse], tried: set[int]) -> bool:
    for excuse in available:
        if id(excuse) in tried or not excuse.explains(visit):
            continue
        tried.add(id(excuse))
        if len(excuse.explained) < excuse.quota:
            excuse.explained.append(visit)
            return True
        for place, other in enumerate(excuse.explained):
            if _assign(other, available, tried):
                excuse.explained[place] = visit
                return True
    return False

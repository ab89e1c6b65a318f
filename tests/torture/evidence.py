"""What was seen of a service, from which invariants.py and excuses.py judge it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.torture.schedule import Event, Schedule
    from tests.torture.visits import Visit


@dataclass(frozen=True)
class Problem:
    """An invariant that does not hold, by its name, and how that shows."""

    invariant: str
    text: str


@dataclass
class Evidence:
    """What was seen of a service. Times are on the monotonic clock.

    Attributes:
        schedule: What was played.
        visits: All clients.
        kills: When workers were killed, and how many connections each had open then.
        all_killed: When the last process was killed that was left, 0 if one was left at the end.
        faults: The faults that were delivered: when they were armed, how, and how many.
        stopped: When the first stop signal was sent; ``parent_killed`` if it was SIGKILL.
        code: The exit code of the process that was started, None if it did not exit.
        left: Processes that ran for too long after it.
        log: The log.
        last: The counters when it was quiet last, None if it never was.
        seconds: How long it served.
        socket_file_left: Whether the file of its Unix socket was left.
        problems: What is wrong already.
    """

    schedule: Schedule
    visits: list[Visit] = field(default_factory=list)
    kills: list[tuple[float, int]] = field(default_factory=list)
    all_killed: float = 0.0
    faults: list[tuple[float, Event, int]] = field(default_factory=list)
    stopped: float = 0.0
    parent_killed: bool = False
    code: int | None = None
    left: int = 0
    log: bytes = b""
    last: dict[str, float] | None = None
    seconds: float = 0.0
    socket_file_left: bool = False
    problems: list[Problem] = field(default_factory=list)


def lines_of(log: bytes) -> list[dict[str, object] | str]:
    """The lines of a log, as objects; a line that is none, as text."""
    found: list[dict[str, object] | str] = []
    for line in log.decode(errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            value = line
        found.append(value if isinstance(value, dict) else line)
    return found

"""What a client experienced, and what a check concludes from it. Values without I/O.

Invariants:

- Every client ends in exactly one Ending.
- A Finding judges the service only by what its clients experienced. What this machine could not do makes it
  ``unsure``, and never ``fail``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Ending(StrEnum):
    """How a client's connection ended."""

    GREETED = "greeted"  # the whole greeting, and an orderly end
    RESET = "reset"  # the whole greeting, and then a reset
    LOST = "lost"  # closed or reset without the whole greeting
    OTHER = "other"  # something else was said, such as a refusal in words
    SILENT = "silent"  # connected, and not a byte by the deadline
    INCOMPLETE = "incomplete"  # some bytes, and no end by the deadline
    REFUSED = "refused"  # the connection was refused or is unreachable
    CONNECT_TIMEOUT = "connect_timeout"
    TLS_ERROR = "tls_error"  # the handshake failed
    LOCAL = "local"  # this machine had no descriptor, port or memory for it


class Verdict(StrEnum):
    """What a check concludes."""

    PASS = "pass"
    FAIL = "fail"
    INFO = "info"  # a figure, which is not judged
    SKIPPED = "skipped"  # does not apply, or was not asked for
    UNSURE = "unsure"  # this machine or the control client failed


class Severity(StrEnum):
    """What it means if the service does not behave as a check asks."""

    MUST = "must"  # it loses clients
    SHOULD = "should"
    INFO = "info"


@dataclass(slots=True)
class Experience:
    """What one client experienced.

    Attributes:
        ending: How its connection ended.
        data: The bytes received.
        story: Its events, each with the time in seconds since it began to connect.
        truncated: True if a TLS connection ended without close_notify.
        syn_again: True if the kernel sent its SYN again: the one before was dropped.
    """

    ending: Ending
    data: bytes = b""
    story: tuple[tuple[float, str], ...] = ()
    truncated: bool = False
    syn_again: bool = False

    def told(self) -> str:
        """Returns the story in one line, with the times in milliseconds."""
        return " · ".join(f"{seconds * 1e3:.1f} {event}" for seconds, event in self.story)


class Tally:
    """The experiences of the clients of one check, counted by their endings."""

    def __init__(self, experiences: Iterable[Experience] = ()) -> None:
        self.classes: Counter[Ending] = Counter()
        self.first: dict[Ending, Experience] = {}
        for experience in experiences:
            self.add(experience)

    def add(self, experience: Experience) -> None:
        """Count one client."""
        self.classes[experience.ending] += 1
        self.first.setdefault(experience.ending, experience)

    def joined(self, other: Tally) -> Tally:
        """Returns the clients of both."""
        joined = Tally()
        joined.classes = self.classes + other.classes
        joined.first = other.first | self.first
        return joined

    @property
    def total(self) -> int:
        """The number of clients."""
        return self.classes.total()

    def all_but(self, *endings: Ending) -> int:
        """Returns the number of clients that ended in another way."""
        return self.total - sum(self.classes[ending] for ending in endings)

    def story(self, *kept: Ending) -> str:
        """Returns the story of the first client that ended in none of the ways ``kept``, or ""."""
        return next((first.told() for ending, first in self.first.items() if ending not in kept), "")

    def figure(self, *kept: Ending) -> str:
        """Returns the figure of a line, such as "40 of 40 reset", without those that ended as ``kept``."""
        parts = [f"{count} {ending}" for ending, count in self.classes.most_common() if ending not in kept]
        if not parts:
            return f"{self.total} of {self.total} {'greeted' if kept else ''}".rstrip()
        head, *rest = parts
        count, _, name = head.partition(" ")
        return ", ".join([f"{count} of {self.total} {name}", *rest])


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found.

    Attributes:
        verdict: What it concludes.
        figure: What was counted or measured, in a few words.
        classes: How many clients ended in which way.
        story: What one client of those that were lost experienced; "" if there is none.
        cause: Why, if it is known better than what the check is registered with.
        data: What is worth keeping in the report beside that, by name.
    """

    verdict: Verdict
    figure: str
    classes: dict[str, int] = field(default_factory=dict)
    story: str = ""
    cause: str = ""
    data: dict[str, object] = field(default_factory=dict)


def judged(tally: Tally, *kept: Ending, late: bool = False) -> Finding:
    """Judges the clients of a check.

    Args:
        tally: How they ended.
        kept: The endings that keep what the check asks; a greeting without a reset by default.
        late: True if this machine was too busy for its clients to be judged.
    """
    kept = kept or (Ending.GREETED,)
    broken = tally.all_but(*kept, Ending.LOCAL)
    if broken and not late:
        verdict = Verdict.FAIL
    elif broken or tally.classes[Ending.LOCAL]:
        verdict = Verdict.UNSURE
    else:
        verdict = Verdict.PASS
    classes = {ending.value: count for ending, count in tally.classes.items()}
    return Finding(verdict, tally.figure(*kept), classes, tally.story(*kept))


# Why a check is skipped that --only or --skip leaves out.
NOT_ASKED_FOR = "not asked for"


def skipped(why: str) -> Finding:
    """Returns the finding of a check that does not apply, or that was not asked for."""
    return Finding(Verdict.SKIPPED, why)


def unsure(why: str) -> Finding:
    """Returns the finding of a check that was left without a verdict."""
    return Finding(Verdict.UNSURE, why)

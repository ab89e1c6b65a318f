"""The checks, each registered once with what it asks of a service, why, and how a service is mended.

Invariants:

- An id is what one types after ``--only``; it never changes its meaning.
- The texts state the mechanism and its source. A service that closes at once obeys TCP, and loses clients all
  the same: no text says that it violates a standard which it keeps.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from greeter.conformance.findings import Finding, Severity

# A check of streams is called with a TestedService, one of datagrams with a DatagramService.
Run = Callable[[Any], Awaitable[Finding]]


@dataclass(frozen=True, slots=True)
class Check:
    """A check.

    Attributes:
        id: Its name on the command line.
        title: What the service is asked for, as the rest of a sentence that begins with "The service".
        severity: What it means if it does not.
        why: What happens to clients otherwise, in one sentence.
        sources: Where that is written, such as "RFC 9293 3.6.1".
        cause: The usual cause, in one sentence.
        cure: What to change, in one sentence.
        run: Asks the service.
        heavy: True if it may trouble a service in use. Off loopback, it needs to be asked for.
        background: True if it waits most of the time, beside the other checks.
        needs: What it needs to apply: "tcp", "eof" (the service closes after its greeting), "junk" (a client
            may speak first), "tls", "proxy", "pid", "restart", "stop", "start"; of datagrams "unasked" (the
            service answers whatever it is sent), "private" or "public" (the network of the client).
        seconds: The time limit of the check, in seconds.
        datagrams: True if it is for services that answer datagrams, False for streams.
        seen_in: Services in which it was seen broken, as a list in a sentence; "" if none was.
    """

    id: str
    title: str
    severity: Severity
    why: str
    sources: tuple[str, ...]
    cause: str
    cure: str
    run: Run
    heavy: bool = False
    background: bool = False
    needs: frozenset[str] = frozenset()
    seconds: float = 10.0
    datagrams: bool = False
    seen_in: str = ""

    @property
    def lifecycle(self) -> bool:
        """True if it reloads or stops the service."""
        return bool(self.needs & {"restart", "stop"})


REGISTERED: dict[str, Check] = {}


def register(
    id: str,
    title: str,
    severity: Severity,
    *,
    why: str,
    sources: tuple[str, ...],
    cause: str,
    cure: str,
    heavy: bool = False,
    background: bool = False,
    needs: tuple[str, ...] = (),
    seconds: float = 10.0,
    datagrams: bool = False,
    seen_in: str = "",
) -> Callable[[Run], Run]:
    """Decorates the function of a check. The arguments are the attributes of ``Check``."""

    def add(run: Run) -> Run:
        assert id not in REGISTERED, id
        REGISTERED[id] = Check(
            id=id,
            title=title,
            severity=severity,
            why=why,
            sources=sources,
            cause=cause,
            cure=cure,
            run=run,
            heavy=heavy,
            background=background,
            needs=frozenset(needs),
            seconds=seconds,
            datagrams=datagrams,
            seen_in=seen_in,
        )
        return run

    return add

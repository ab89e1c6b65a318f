"""What must hold of a run in which one call has failed, whichever it was.

- Every client is greeted whole, but for the one whose connection was hit, which may be counted as failed.
- accepted = greeted + failed + rejected, and every client was accepted.
- When the clients are gone, no more descriptors are open than without the fault, and the service waits: it
  makes about as many calls as without.
- The log has no traceback, and few lines about the fault.
- A start either succeeds, or ends with the exit code 1, or 2 if a file could not be read, and one line of
  error which says what failed.
- A reload either succeeds or says that it failed, and the service goes on.
- A stop ends with the exit code 0, also after a fault.
"""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING

from tests.faults.errors import COSTS_ITS_CLIENT, COSTS_NONE, LOST_BY_LIBUV

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.runs import Fault, Record
    from tests.faults.services import Kind

# Lines of a service that says what it does.
INFORMATION = (
    "At most |Got a |Listening on |Metrics on |Reloaded$|SIGTERM: stopping|Stopped: |accepting has resumed$|"
    r"worker \d+ serves in place|warning: running as root|warning: accept queues"
)
# Lines about something that failed: of the service, or of a client.
OTHERS = r"error: |warning: |\(.*\): no "
# How many other lines one fault may cause.
MAX_LINES = 4


def problems(kind: Kind, loop: str, fault: Fault, record: Record, base: Record) -> list[str]:
    """What does not hold of a run.

    Args:
        kind: The kind of service.
        loop: Its event loop.
        fault: What failed in it.
        record: What it has shown.
        base: What a run without a fault has shown.
    """
    found = [] if not record.hung else [f"hung: {record.hung}"]
    if "Traceback" in "".join(record.lines):
        found.append("a traceback")
    if record.hit_in == "start" and not any(line.startswith("Listening on") for line in record.lines):
        return found + list(_of_a_failed_start(kind, fault, record))
    libuv_accepts = loop == "uvloop" and kind.streams
    if not (libuv_accepts and fault.call == "accept" and fault.error in LOST_BY_LIBUV):
        found += _of_clients(fault, record)
        found += _of_counters(kind, record)
    if record.code != 0:
        found.append(f"exit code {record.code}")
    if record.descriptors > base.descriptors:
        found.append(f"{record.descriptors} descriptors, {base.descriptors} without the fault")
    for call in ("accept", "epoll_wait"):
        made, usual = record.seen.get(call, 0), base.seen.get(call, 0)
        if made > 3 * usual + 300:
            found.append(f"{made} calls of {call}, {usual} without the fault")
    others = [line for line in record.lines if not re.match(INFORMATION, line)]
    if len(others) > MAX_LINES:
        found.append(f"{len(others)} log lines")
    if not all(re.match(OTHERS if kind.processes == 1 else f"{OTHERS}|greeter: ", line) for line in others):
        found.append("a log line without a level")
    listening = [sum(line.startswith("Listening on") for line in each.lines) for each in (record, base)]
    no_ipv6 = fault.error in ("EAFNOSUPPORT", "EADDRNOTAVAIL")  # as it seems
    if listening[0] != listening[1] and not no_ipv6:
        found.append(f"{listening[0]} addresses, {listening[1]} without the fault")
    reloads = [line for line in record.lines if re.match("Reloaded|error: reload failed", line)]
    if len(reloads) != 1:
        found.append(f"{len(reloads)} reloads")
    return found


def _of_a_failed_start(kind: Kind, fault: Fault, record: Record) -> Iterator[str]:
    if record.code not in (1, 2):
        yield f"exit code {record.code} of a start"
    errors = [line for line in record.lines if not re.match(INFORMATION, line)]
    if not 1 <= len(errors) <= kind.processes:  # a worker without a channel writes a line of its own
        yield f"{len(errors)} lines of error"
    text = os.strerror(getattr(errno, fault.error)).lower()
    if any(line.lower().removeprefix("greeter: ") == text for line in errors):
        yield "the line of error does not say what failed"


def _of_clients(fault: Fault, record: Record) -> Iterator[str]:
    for phase, connected in record.connected.items():
        lost = connected - record.greeted.get(phase, 0)
        call, _, descriptor = fault.call.partition(".")
        may_cost = call in COSTS_ITS_CLIENT and descriptor in ("", "udp") and fault.error not in COSTS_NONE
        if lost > int(may_cost and record.hit_in == phase):
            yield f"{lost} of {connected} clients lost in the phase {phase}, hit in {record.hit_in}"


def _of_counters(kind: Kind, record: Record) -> Iterator[str]:
    last = record.lines[-1] if record.lines else ""
    found = re.match(r"Stopped: (\d+) greeted of (\d+) accepted, (\d+) failed(?:, (\d+) rejected)?", last)
    if found is None:
        yield f"the last line is {last!r}"
        return
    greeted, accepted, failed, rejected = (int(number or 0) for number in found.groups())
    if accepted != greeted + failed + rejected:
        yield "the counters do not add up"
    connected, heard = sum(record.connected.values()), sum(record.greeted.values())
    if kind.client != "udp" and accepted != connected:
        yield f"{accepted} accepted of {connected} clients"
    if kind.client != "udp" and failed < connected - heard:
        yield f"{connected - heard} clients lost, {failed} counted"
    if failed > 2:  # the one that was hit, and one that had reset its connection
        yield f"{failed} failed"

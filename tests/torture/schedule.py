"""A service and what happens to it, as values.

Invariants:

- Every event is defined for every service: one that does not apply does nothing. So each part of a schedule
  is a schedule, which shrinking relies on.
- The last event is the only stop.
- A schedule is the same after ``to_json`` and ``from_json``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

# A client that reads to the end in time, whatever it says first. It must be greeted or refused.
GOOD = (
    "read",
    "speak",
    "pieces",
    "half-close",
    "dawdle",
    "small window",
    "urgent",
    "flood",
    "greet",
    "datagram",
)
# A client that is owed nothing.
BAD = ("reset", "vanish", "stall", "hold", "tiny window", "garbage", "bad preamble", "cut preamble")
GREETINGS = ("fixed", "template", "async", "at once", "thread", "quick", "flaky")
# Faults of the system calls: the errors that are drawn for each, and whether one costs the connection that it
# hits. Of a connection that is reset, nothing can be expected. The others have to be tried again.
COSTLY = {
    "send": ("EPIPE", "ECONNRESET", "ENOBUFS"),
    "recv": ("ECONNRESET", "ETIMEDOUT"),
    "shutdown": ("ENOTCONN",),
}
HARMLESS = {
    "accept": ("ECONNABORTED", "EPROTO", "EPERM", "EINTR"),
    "send": ("EAGAIN", "EINTR"),
    "recv": ("EINTR", "EAGAIN"),
    "spawn": ("EAGAIN", "ENOMEM"),
    "memfd_create": ("EMFILE", "ENFILE", "ENOMEM"),
}
# The disk of the log is full.
FULL_DISK = ("send.file", "ENOSPC")
# Of accept(), for lack of descriptors or memory.
OUTAGES = ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM")


@dataclass(frozen=True)
class ServiceSpec:
    """How a service is started; 0 is the default of ``greeter serve``.

    Attributes:
        loop: ``asyncio`` or ``uvloop``.
        path: ``direct`` or ``streams``.
        workers: Processes that serve.
        endpoints: Of ``tcp``, ``unix`` and ``udp``.
        greeting: One of GREETINGS.
        size: Bytes of the greeting, except of a template.
        tls: Serve TLS.
        proxy: Connections begin with a PROXY header.
        log: Where the log goes: ``file``, ``pipe``, or ``full``, a device on which there is no room.
        files: The limit on descriptors at the start.
        max_connections: The option.
        max_per_ip: The option.
        greet_timeout: The option, in seconds.
        linger_timeout: The option, in seconds.
        drain_timeout: The option, in seconds.
        stop_delay: The option, in seconds.
    """

    loop: str = "asyncio"
    path: str = "direct"
    workers: int = 1
    endpoints: tuple[str, ...] = ("tcp",)
    greeting: str = "fixed"
    size: int = 24
    tls: bool = False
    proxy: bool = False
    log: str = "file"
    files: int = 0
    max_connections: int = 0
    max_per_ip: int = 0
    greet_timeout: float = 10.0
    linger_timeout: float = 2.0
    drain_timeout: float = 10.0
    stop_delay: float = 0.0

    def __str__(self) -> str:
        default = ServiceSpec()
        told = [f"{self.loop} {self.path}"]
        for name, value in asdict(self).items():
            if name not in ("loop", "path") and value != getattr(default, name):
                told.append(f"{name}={'+'.join(value) if isinstance(value, tuple) else value}")
        return ", ".join(told)


@dataclass(frozen=True)
class Event:
    """Something that happens to a service.

    Attributes:
        after: Milliseconds since the event before.
        do: What happens:

            - ``client``: ``count`` clients of the kind ``what`` come, for about ``ms`` each.
            - ``fault``: ``count`` calls of ``what`` fail with ``error`` after the next ``value``, for ``ms``
              at most. With ``part``, the first of them is a send of so many bytes.
            - ``reload``: SIGHUP; of a configuration that is ``broken`` if ``what`` says so.
            - ``pause``: SIGSTOP to the ``parent``, a ``worker`` or ``all``, SIGCONT after ``ms``.
            - ``kill``: SIGKILL to a worker, number ``value``.
            - ``descriptors``: no more than ``value`` further ones, for ``ms``.
            - ``log``: the reader of the log does not read for ``ms``.
            - ``clock``: the time of day jumps by ``value`` seconds.
            - ``quiet``: all clients leave, and the service has to be as it was.
            - ``stop``: SIGTERM to the ``parent`` or to ``all``, ``count`` times, ``ms`` apart; or SIGKILL to
              the ``killed parent``, of which workers must stop. Meanwhile, ``value`` clients come one after
              the other, and the event ``error`` happens.
    """

    after: int
    do: str
    what: str = ""
    count: int = 1
    ms: int = 0
    value: int = 0
    error: str = ""
    part: int = 0

    def __str__(self) -> str:
        told = [f"+{self.after} ms", self.do]
        default = Event(0, "")
        for name, value in asdict(self).items():
            if name not in ("after", "do") and value != getattr(default, name):
                told.append(str(value) if name in ("what", "error") else f"{name}={value}")
        return " ".join(told)


@dataclass(frozen=True)
class Schedule:
    """A service and its events, in order."""

    service: ServiceSpec
    events: tuple[Event, ...]

    def __str__(self) -> str:
        lines = [f"service: {self.service}"]
        lines += [f"{number:>4}  {event}" for number, event in enumerate(self.events, 1)]
        return "\n".join(lines)

    def to_json(self) -> str:
        """Return the schedule as text, which ``from_json`` reads."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Schedule:
        """Read what ``to_json`` has written."""
        found: dict[str, Any] = json.loads(text)
        service = ServiceSpec(**{**found["service"], "endpoints": tuple(found["service"]["endpoints"])})
        return cls(service, tuple(Event(**event) for event in found["events"]))

    def without(self, numbers: frozenset[int]) -> Schedule:
        """Return the schedule without some events, which are counted from 1. The stop stays."""
        last = len(self.events)
        kept = [event for n, event in enumerate(self.events, 1) if n == last or n not in numbers]
        return replace(self, events=tuple(kept))
